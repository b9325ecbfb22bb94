"""What is added to the score: biases as descriptions; the structured ones are never expanded.

A bias is fitted, narrowed and evaluated like a mask (see `_masks`). The structured biases depend
on the distance from query to key alone, so all of L x S is a vector of L + S - 1 numbers a head.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard._arrays import DTYPES, Array, accept, dtype_name, is_torch
from regard._errors import DtypeError, OptionError, ShapeError
from regard._masks import Grid, Load, Offset, Sizes, checked_offset, fit, some_heads


class Bias(ABC):
    """Base of all biases."""

    @abstractmethod
    def bind(self, sizes: Sizes) -> "Bias":
        """This bias fitted to sizes.

        Raises:
            ShapeError: an array of the bias does not fit.
        """

    @abstractmethod
    def select(self, batch: tuple[Any, ...], heads: Any) -> "Bias":
        """A bound bias for some batch entries and heads; `heads` keeps its axis."""

    @abstractmethod
    def added(self, at: Grid) -> Array:
        """Numbers that broadcast to (*batch, heads, rows, columns). Bound biases only."""


@dataclass(frozen=True, eq=False)
class DenseBias(Bias):
    """Any array that broadcasts to (*batch, heads, L, S).

    `given` is the array as it was before `bind` broadcast it: a gradient that is gathered there
    is as small as the array, one gathered at its broadcast view is not.
    """

    array: Array
    given: Array | None = None

    def bind(self, sizes: Sizes) -> "DenseBias":
        return DenseBias(fit(self.array, sizes.full, "bias"), self.array)

    def select(self, batch: tuple[Any, ...], heads: Any) -> "DenseBias":
        return DenseBias(self.array[(*batch, some_heads(self.array, heads))])

    def added(self, at: Grid) -> Array:
        return at.cut(self.array)


class DistanceBias(Bias):
    """A bias that depends on j - i - offset alone."""

    offset: Offset

    @abstractmethod
    def by_distance(self, distance: Array, load: Load) -> Array:
        """(heads, *distance.shape), for integer distances from query to key."""

    def added(self, at: Grid) -> Array:
        return self.by_distance(at.j - at.i - self.offset, at.load)


@dataclass(frozen=True, eq=False)
class Alibi(DistanceBias):
    """-slope of the head x |distance|."""

    slopes: Array
    offset: Offset = 0

    def bind(self, sizes: Sizes) -> "Alibi":
        if tuple(self.slopes.shape) != (sizes.heads,):
            got = tuple(self.slopes.shape)
            raise ShapeError(f"alibi: got slopes of shape {got}; needs ({sizes.heads},)")
        return Alibi(self.slopes, _resolve(self.offset, sizes))

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Alibi":
        return Alibi(self.slopes[heads], self.offset)

    def by_distance(self, distance: Array, load: Load) -> Array:
        slopes = load(self.slopes)
        return -slopes.reshape(-1, *[1] * distance.ndim) * abs(distance)


@dataclass(frozen=True, eq=False)
class Relative(DistanceBias):
    """A learned number for each bucket of distances and head (T5)."""

    table: Array
    bidirectional: bool = True
    max_distance: int = 128
    offset: Offset = 0

    def bind(self, sizes: Sizes) -> "Relative":
        if self.table.ndim != 2 or self.table.shape[1] != sizes.heads:
            got = tuple(self.table.shape)
            raise ShapeError(
                f"relative: got a table of shape {got}; needs (buckets, {sizes.heads})"
            )
        offset = _resolve(self.offset, sizes)
        return Relative(self.table, self.bidirectional, self.max_distance, offset)

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Relative":
        table = self.table[:, heads]
        return Relative(table, self.bidirectional, self.max_distance, self.offset)

    def by_distance(self, distance: Array, load: Load) -> Array:
        table = load(self.table)
        distance = np.asarray(distance.cpu() if is_torch(distance) else distance)
        buckets = load(self.bucket(distance))
        rows = table[buckets.reshape(-1)].T
        return rows.reshape(table.shape[1], *buckets.shape)

    def bucket(self, distance: np.ndarray) -> np.ndarray:
        """T5's bucket of a distance: half of them exact, half logarithmic up to max_distance."""
        count = self.table.shape[0]
        first = np.zeros_like(distance)
        if self.bidirectional:
            count //= 2
            first = np.where(distance > 0, count, 0)
            distance = np.abs(distance)
        else:
            distance = np.maximum(-distance, 0)
        exact = count // 2
        # float32 as in the models this table was trained in: buckets on an edge depend on it.
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(max(exact, 1)))
        ratio = ratio / math.log(self.max_distance / max(exact, 1))
        far = exact + (ratio * (count - exact)).astype(np.int64)
        bucket = np.where(distance < exact, distance, np.minimum(far, count - 1))
        result: np.ndarray = first + bucket
        return result


def alibi(slopes: Any, offset: Offset = 0) -> Bias:
    """-slope · |i + offset - j|, one slope per head (Press et al. 2022).

    Args:
        slopes: (heads,), floating point.
        offset: an int, or "end": S - L.

    Raises:
        DtypeError: slopes are not floating point.
    """
    return Alibi(_floating(slopes, "alibi: slopes"), _scalar_offset(offset, "alibi"))


def relative(
    table: Any, *, bidirectional: bool = True, max_distance: int = 128, offset: Offset = 0
) -> Bias:
    """A learned number for each bucket of distances j - i - offset (T5, Raffel et al. 2020).

    Args:
        table: (buckets, heads), floating point; at least 4 buckets.
        bidirectional: half of the buckets for keys after the query; otherwise those share one.
        max_distance: from here on all distances share the last bucket.
        offset: an int, or "end": S - L.

    Raises:
        DtypeError: the table is not floating point.
        OptionError: fewer than 4 buckets, or max_distance does not exceed the exact buckets.
    """
    table = _floating(table, "relative: table")
    buckets = table.shape[0] if table.ndim else 0
    if buckets < 4:
        raise OptionError(f"relative: needs at least 4 buckets, got {buckets}")
    exact = buckets // (4 if bidirectional else 2)
    if max_distance <= exact:
        raise OptionError(
            f"relative: max_distance must exceed the {exact} exact buckets, got {max_distance}"
        )
    return Relative(table, bidirectional, max_distance, _scalar_offset(offset, "relative"))


def as_bias(bias: Any) -> Bias:
    """A bias as it is, an array as a dense bias."""
    return bias if isinstance(bias, Bias) else DenseBias(_floating(bias, "bias"))


def _floating(x: Any, name: str) -> Array:
    array = np.asarray(x, np.float32) if isinstance(x, (list, tuple)) else accept(x, name)
    if dtype_name(array) not in DTYPES:
        raise DtypeError(f"{name}: got dtype {dtype_name(array)}; needs one of {', '.join(DTYPES)}")
    return array


def _scalar_offset(offset: Offset, name: str) -> Offset:
    checked = checked_offset(offset)
    if isinstance(checked, str):
        return checked
    if checked.ndim:
        raise OptionError(f'{name}: offset must be one int or "end"')
    return int(checked)


def _resolve(offset: Offset, sizes: Sizes) -> int:
    return sizes.S - sizes.L if isinstance(offset, str) else int(offset)
