"""What is computed: shapes and inputs."""

from dataclasses import dataclass, replace

import torch

FORWARD, BACKWARD, DECODE = "forward", "backward", "decode"


@dataclass(frozen=True)
class Inputs:
    """query, key and value, and what the context's gradient is taken to be."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    upstream: torch.Tensor

    @property
    def arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.key, self.value


@dataclass(frozen=True)
class Case:
    """Attention of one size: queries are (1, heads, L, d), keys and values (1, heads, S, d).

    Without S it is self-attention. With `gradients` those of query, key and value are computed too.
    """

    L: int
    S: int = 0
    causal: bool = False
    heads: int = 8
    d: int = 64
    dtype: torch.dtype = torch.float32
    gradients: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "S", self.S or self.L)

    @property
    def name(self) -> str:
        return f"{self.L} x {self.S} x {self.d}" + (" causal" if self.causal else "")

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def work(self) -> str:
        if self.gradients:
            return BACKWARD
        return DECODE if self.L == 1 else FORWARD

    @property
    def operations(self) -> int:
        """Floating point operations of the products: two of them forward, five more backward."""
        pairs = self.L * (self.L + 1) // 2 if self.causal else self.L * self.S
        return 2 * self.heads * self.d * pairs * (7 if self.gradients else 2)

    @property
    def bytes_read(self) -> int:
        """Every input once; what is written is not counted."""
        rows = (2 if self.gradients else 1) * self.L + 2 * self.S
        return self.heads * rows * self.d * self.dtype.itemsize

    @property
    def bytes_of_weights(self) -> int:
        """The weights as float32, the type in which they are computed."""
        return 4 * self.heads * self.L * self.S

    def inputs(self) -> Inputs:
        """The same numbers for every peer."""
        generator = torch.Generator().manual_seed(0)
        lengths = (self.L, self.S, self.S, self.L)
        return Inputs(
            *(
                torch.randn(1, self.heads, length, self.d, generator=generator).to(self.dtype)
                for length in lengths
            )
        )


# Microseconds: the threads that other libraries leave spinning would be all that is timed.
SMALL = Case(1, S=16)
_SHAPES = (
    Case(2048),
    Case(2048, causal=True),
    Case(2048, d=128),
    Case(2048, d=128, causal=True),
    Case(512),
    Case(512, causal=True),
    Case(128),
    Case(128, causal=True),
    Case(8192, causal=True),
    Case(2048, gradients=True),
    Case(2048, causal=True, gradients=True),
    Case(2048, d=128, gradients=True),
    Case(512, gradients=True),
    Case(1, S=4096),
    SMALL,
)
DTYPES = (torch.float32, torch.bfloat16)
CASES = tuple(replace(shape, dtype=dtype) for dtype in DTYPES for shape in _SHAPES)
REHEARSED = tuple(Case(64, dtype=d, gradients=g) for d in DTYPES for g in (False, True))
OBSERVED = tuple(Case(2048, dtype=dtype) for dtype in DTYPES)
UNDISTURBED = Case(512)  # timed alone too, to see whether the peers' threads disturb it
