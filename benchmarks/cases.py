"""What is computed: shapes and inputs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """Self-attention of one size: query, key and value are (1, heads, L, d)."""

    L: int
    causal: bool = False
    heads: int = 8
    d: int = 64
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.L} x {self.L} x {self.d}" + (" causal" if self.causal else "")

    @property
    def bytes_of_weights(self) -> int:
        return self.heads * self.L * self.L * self.dtype.itemsize

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same numbers for every peer."""
        generator = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(1, self.heads, self.L, self.d, generator=generator).to(self.dtype)
            for _ in range(3)
        )
        return query, key, value


FORWARD = (
    Case(2048),
    Case(2048, causal=True),
    Case(512),
    Case(512, causal=True),
    Case(128),
    Case(128, causal=True),
    Case(8192, causal=True),
)
OBSERVED = Case(2048)
