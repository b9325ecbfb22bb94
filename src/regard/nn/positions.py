"""Where a token stands, told to a model: added to its vector, by turning, or by a bias."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import OptionError, ShapeError
from regard.nn._checks import check_size


class _Waves(nn.Module):
    """Sines and cosines of positions, made when they are met.

    The module's dtype is none of the table's business: it holds float32, or float64 for vectors
    of float64. Moving or casting the module forgets it.

    Args:
        size: of the vectors, even.
        base: of the wavelengths.
        columns: of the table.
    """

    table: Tensor

    def __init__(self, size: int, base: float, columns: int) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise OptionError(f"size: needs an even number of 2 or more, got {size}")
        if not base > 0:
            raise OptionError(f"base: needs a positive number, got {base}")
        self.base = base
        self.register_buffer("table", torch.empty(0, columns), persistent=False)

    def _row(self, sines: Tensor, cosines: Tensor) -> Tensor:
        """The table's rows (length, columns), of sines and cosines (length, size/2)."""
        raise NotImplementedError

    def _rows(self, x: Tensor, start: int, size: int) -> Tensor:
        """The rows of positions `start` and after for x (..., length, size), of its dtype."""
        check_size(x, size, "x")
        stop = _stop(x, start)
        exact = torch.float64 if x.dtype is torch.float64 else torch.float32
        table = self.table
        if stop > len(table) or table.dtype is not exact or table.device != x.device:
            with torch.inference_mode(False):  # or it would be of no use to later training
                angles = _angles(_room(stop), size, self.base)
                table = self._row(angles.sin(), angles.cos()).to(x.device, exact)
            if torch.compiler.is_compiling() or _lasts(table):
                self.table = table
        return table[start:stop].to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What every cast or move of a module goes through."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self.table.new_empty(0, self.table.shape[1])
        return self


class SinusoidalPositions(_Waves):
    """Adds sines and cosines of the position (Vaswani et al. 2017, section 3.5).

    Of position p, number 2i of the vector is sin(p / base^(2i/size)), and 2i + 1 is the cosine.

    Args:
        size: of the vectors, even.
        base: of the wavelengths, which go from 2π to 2π · base.

    Raises:
        OptionError: size is odd or not positive, or base is not positive.
    """

    def __init__(self, size: int, *, base: float = 10_000.0) -> None:
        super().__init__(size, base, size)
        self.size = size

    def _row(self, sines: Tensor, cosines: Tensor) -> Tensor:
        return torch.stack([sines, cosines], -1).flatten(-2)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (*batch, L, size), of which the first is at position `start`; the same shape.

        Raises:
            ShapeError: x has vectors of another size.
        """
        return x + self._rows(x, start, self.size)

    def extra_repr(self) -> str:
        return f"{self.size}, base={self.base:g}"


class LearnedPositions(nn.Module):
    """Adds a learned vector per position (Gehring et al. 2017; BERT, GPT-2).

    Args:
        length: how many positions there are.
        size: of the vectors.

    The vectors begin normal with a standard deviation of 0.02.
    """

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, size))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (*batch, L, size), of which the first is at position `start`; the same shape.

        Raises:
            ShapeError: x has vectors of another size, or goes beyond the last position.
        """
        length, size = self.weight.shape
        check_size(x, size, "x")
        stop = _stop(x, start)
        if stop > length:
            raise ShapeError(f"x: reaches position {stop - 1}; there are {length} learned ones")
        return x + self.weight[start:stop]

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


class RotaryPositions(_Waves):
    """Turns queries and keys by their position: scores depend on distances (Su et al. 2021).

    Numbers i and i + d_k/2 are one pair ("halves", as Llama and transformers have it; the paper
    pairs 2i with 2i + 1, which is the same up to the order of a projection's rows). At position p
    a pair is turned by the angle p / base^(2i/d_k). Without parameters, so that all layers of a
    model can share one.

    Args:
        d_k: size of a head, even.
        base: of the wavelengths.

    Raises:
        OptionError: d_k is odd or not positive, or base is not positive.
    """

    def __init__(self, d_k: int, *, base: float = 10_000.0) -> None:
        super().__init__(d_k, base, 2 * d_k)
        self.d_k = d_k

    def _row(self, sines: Tensor, cosines: Tensor) -> Tensor:
        return torch.cat([cosines, cosines, sines, sines], -1)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (*batch, heads, L, d_k), of which the first is at position `start`; the same shape.

        Raises:
            ShapeError: x has heads of another size.
        """
        cosines, sines = self._rows(x, start, self.d_k).chunk(2, -1)
        first, second = x.chunk(2, -1)
        return x * cosines + torch.cat([-second, first], -1) * sines

    def extra_repr(self) -> str:
        return f"{self.d_k}, base={self.base:g}"


def alibi_slopes(heads: int) -> Tensor:
    """The slopes of ALiBi's bias -slope · distance (Press et al. 2022), for `regard.alibi`.

    Args:
        heads: 1 or more. For a power of two, head h of 1 to heads has 2^(-8h/heads); otherwise the
            slopes of the next smaller power of two come first, and then every other one of the
            next larger.

    Returns:
        (heads,), float32.

    Raises:
        OptionError: heads is less than 1.
    """
    if heads < 1:
        raise OptionError(f"heads: needs 1 or more, got {heads}")
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    return torch.tensor((slopes + between)[:heads])


def _stop(x: Tensor, start: int) -> int:
    """The position after the last of x (..., length, size)."""
    if start < 0:
        raise OptionError(f"start: needs 0 or more, got {start}")
    return start + x.shape[-2]


def _lasts(x: Tensor) -> bool:
    """Whether a tensor is of use outside of the transform or mode in which it was made."""
    functorch: Any = torch._C._functorch
    return type(x) is Tensor and not functorch.is_functorch_wrapped_tensor(x)


def _angles(length: int, size: int, base: float) -> Tensor:
    """(length, size/2): in float64, as float32 is off by some 1e-3 at position 10,000."""
    frequencies = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


def _room(length: int) -> int:
    """How many positions to make at once: decoding asks for one more every time."""
    return int(max(128, 2 ** math.ceil(math.log2(length))))
