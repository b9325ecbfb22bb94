"""Who may see whom: masks as descriptions, never as L x S arrays.

True means "may attend". `&` and `|` compose. A mask is written without knowing the sizes it will
meet; `bind` fits it to them and raises every error about its shape; `select` narrows a bound mask
to some batch entries and heads; `visible` is its formula, which NumPy and torch both evaluate.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from regard._arrays import Array, accept, broadcast, dtype_name, is_torch
from regard._errors import DtypeError, OptionError, ShapeError

FARTHEST = 2**60  # of positions and distances: their sums stay within 64 bits
Offset = Any  # int, "end", or one int per batch element
Load = Callable[[Array], Array]  # brings a stored array to the kind and device computed with


@dataclass(frozen=True)
class Sizes:
    """What a mask or bias is fitted to."""

    batch: tuple[int, ...]
    heads: int
    L: int
    S: int

    @property
    def full(self) -> tuple[int, ...]:
        return (*self.batch, self.heads, self.L, self.S)


@dataclass(frozen=True)
class Grid:
    """Where a mask or bias is evaluated: some query rows against some key columns.

    Slices with start, stop and a positive step, so that a stored array is cut to them as a view
    before anything of it is copied.
    """

    rows: slice
    columns: slice
    load: Load

    @cached_property
    def i(self) -> Array:
        """Query indices, (rows, 1)."""
        return self.load(np.arange(self.rows.start, self.rows.stop, self.rows.step)[:, None])

    @cached_property
    def j(self) -> Array:
        """Key indices, (1, columns)."""
        return self.load(np.arange(self.columns.start, self.columns.stop, self.columns.step)[None])

    def cut(self, array: Array) -> Array:
        """The part of an array (..., L, S) that lies here."""
        return self.load(array[..., self.rows, self.columns])

    def per_batch(self, values: Array) -> Array:
        """One number per batch element, shaped to broadcast over heads, rows and columns."""
        return self.load(values)[..., None, None, None]


class Mask(ABC):
    """Base of all masks. Combine with & and |."""

    def __and__(self, other: Any) -> "Mask":
        return Both(self, as_mask(other))

    def __or__(self, other: Any) -> "Mask":
        return Either(self, as_mask(other))

    __rand__, __ror__ = __and__, __or__
    __array_ufunc__ = None  # so that array & mask comes here instead of to NumPy

    @abstractmethod
    def bind(self, sizes: Sizes) -> "Mask":
        """This mask fitted to sizes: each array with all its batch dimensions.

        Raises:
            ShapeError: an array of the mask does not fit.
        """

    @abstractmethod
    def select(self, batch: tuple[Any, ...], heads: Any) -> "Mask":
        """A bound mask for some batch entries and heads, given as indices that keep no axis
        (ints) or keep it (slices, and lists of heads)."""

    @abstractmethod
    def visible(self, at: Grid) -> Array:
        """Booleans that broadcast to (*batch, heads, rows, columns). Bound masks only."""


@dataclass(frozen=True, eq=False)
class Band(Mask):
    """Keys from i + offset - left to i + offset + right, or among the first `first`.

    None leaves a side open. The masks that move with the diagonal, and the lengths, are all bands.
    """

    offset: Offset = 0
    left: int | None = None
    right: int | None = None
    first: Any = None

    def bind(self, sizes: Sizes) -> "Band":
        offset = sizes.S - sizes.L if isinstance(self.offset, str) else self.offset
        first = None if self.first is None else _per_batch(self.first, "lengths", sizes)
        return Band(_per_batch(offset, "offset", sizes), self.left, self.right, first)

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Band":
        first = None if self.first is None else self.first[batch]
        return Band(self.offset[batch], self.left, self.right, first)

    def visible(self, at: Grid) -> Array:
        diagonal = at.i + at.per_batch(self.offset)
        seen = at.j == at.j  # all True
        if self.left is not None:
            seen = seen & (at.j >= diagonal - self.left)
        if self.first is not None:
            upper = at.j < at.per_batch(self.first)
            if self.right is not None:
                upper = upper | (at.j <= diagonal + self.right)
            seen = seen & upper
        elif self.right is not None:
            seen = seen & (at.j <= diagonal + self.right)
        return seen


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Real keys only; a padded query sees nothing."""

    keys: Array
    queries: Array | None = None

    def bind(self, sizes: Sizes) -> "Padding":
        keys = fit(self.keys, (*sizes.batch, sizes.S), "padding: keys")
        if self.queries is None:
            return Padding(keys)
        return Padding(keys, fit(self.queries, (*sizes.batch, sizes.L), "padding: queries"))

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Padding":
        return Padding(self.keys[batch], None if self.queries is None else self.queries[batch])

    def visible(self, at: Grid) -> Array:
        seen = at.load(self.keys)[..., None, at.j]
        if self.queries is not None:
            seen = seen & at.load(self.queries)[..., None, at.i]
        return seen


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Query and key of the same document."""

    query_ids: Array
    key_ids: Array

    def bind(self, sizes: Sizes) -> "Documents":
        return Documents(
            fit(self.query_ids, (*sizes.batch, sizes.L), "documents: query_ids"),
            fit(self.key_ids, (*sizes.batch, sizes.S), "documents: key_ids"),
        )

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Documents":
        return Documents(self.query_ids[batch], self.key_ids[batch])

    def visible(self, at: Grid) -> Array:
        own: Array = at.load(self.query_ids)[..., None, at.i]
        return own == at.load(self.key_ids)[..., None, at.j]


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """A boolean array that broadcasts to (*batch, heads, L, S)."""

    array: Array

    def bind(self, sizes: Sizes) -> "Dense":
        return Dense(fit(self.array, sizes.full, "mask"))

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Dense":
        return Dense(self.array[(*batch, some_heads(self.array, heads))])

    def visible(self, at: Grid) -> Array:
        return at.cut(self.array)


@dataclass(frozen=True, eq=False)
class Both(Mask):
    """Visible to both."""

    a: Mask
    b: Mask

    def bind(self, sizes: Sizes) -> "Both":
        return Both(self.a.bind(sizes), self.b.bind(sizes))

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Both":
        return Both(self.a.select(batch, heads), self.b.select(batch, heads))

    def visible(self, at: Grid) -> Array:
        return self.a.visible(at) & self.b.visible(at)


@dataclass(frozen=True, eq=False)
class Either(Mask):
    """Visible to at least one."""

    a: Mask
    b: Mask

    def bind(self, sizes: Sizes) -> "Either":
        return Either(self.a.bind(sizes), self.b.bind(sizes))

    def select(self, batch: tuple[Any, ...], heads: Any) -> "Either":
        return Either(self.a.select(batch, heads), self.b.select(batch, heads))

    def visible(self, at: Grid) -> Array:
        return self.a.visible(at) | self.b.visible(at)


def causal(offset: int | Literal["end"] | Any = 0) -> Mask:
    """Query i may see key j when j <= i + offset.

    Args:
        offset: an int, one int per batch element (*batch,), or "end": S - L, so that the last
            query sees the last key, as when decoding with a cache.

    Raises:
        OptionError: offset is another word; DtypeError: it holds no integers.
    """
    return Band(checked_offset(offset), right=0)


def window(left: int | None, right: int | None = None, offset: Offset = 0) -> Mask:
    """Query i may see keys i + offset - left to i + offset + right, both included.

    Args:
        left: keys before the query's own position, 0 or more; None for no bound.
        right: keys after it, likewise.
        offset: as for `causal`.

    A sliding window of 512 tokens, the query's own included, is `causal() & window(511)`.

    Raises:
        OptionError: left or right is negative or no int.
        DtypeError: offset holds no integers.
    """
    for name, side in (("left", left), ("right", right)):
        whole = isinstance(side, (int, np.integer)) and not isinstance(side, bool)
        if side is not None and not (whole and 0 <= side <= FARTHEST):
            raise OptionError(
                f"window: {name} must be an int of 0 or more, at most 2**60, or None; got {side!r}"
            )
    return Band(checked_offset(offset), left, right)


def lengths(keys: Any) -> Mask:
    """The first n keys, one n per batch element: ints of shape (*batch,), or one int.

    Raises:
        OptionError: a negative number; DtypeError: no integers.
    """
    return Band(first=_counts(keys, "lengths"))


def prefix(n: Any, offset: Offset = 0) -> Mask:
    """Causal, or among the first n keys (prefix language models); n as in `lengths`.

    Raises:
        OptionError: a negative n, or offset is another word; DtypeError: no integers.
    """
    return Band(checked_offset(offset), right=0, first=_counts(n, "prefix"))


def padding(keys: Any, queries: Any | None = None) -> Mask:
    """True where a key, and by choice a query, is real: booleans (*batch, S) and (*batch, L).

    A padded query sees nothing, its context is zero, and it counts in no statistic.

    Raises:
        DtypeError: an array is not boolean.
    """
    key_flags = _boolean(keys, "padding: keys")
    return Padding(key_flags, None if queries is None else _boolean(queries, "padding: queries"))


def documents(query_ids: Any, key_ids: Any) -> Mask:
    """Same document only: integers (*batch, L) and (*batch, S), as in packed sequences.

    Raises:
        DtypeError: an array does not hold integers.
    """
    return Documents(
        integers(query_ids, "documents: query_ids"), integers(key_ids, "documents: key_ids")
    )


def dense(array: Any) -> Mask:
    """A boolean array of any shape that broadcasts to (*batch, heads, L, S).

    Raises:
        DtypeError: the array is not boolean.
    """
    return Dense(_boolean(array, "mask"))


def as_mask(mask: Any) -> Mask:
    """A mask as it is, a boolean array as a dense mask.

    Raises:
        DtypeError: neither.
    """
    if isinstance(mask, str) or callable(mask):
        got = f'"{mask}"' if isinstance(mask, str) else f"{mask.__name__}, not called"
        raise DtypeError(f"mask: got {got}; needs a mask, as regard.causal() is, or booleans")
    return mask if isinstance(mask, Mask) else dense(mask)


def some_heads(array: Array, heads: Any) -> Any:
    """An index of heads; a slice where all are one, as a list would write each of them out."""
    strides = array.stride() if is_torch(array) else array.strides
    return slice(0, len(heads)) if isinstance(heads, list) and not strides[-3] else heads


def _array(x: Any, name: str) -> Array:
    return np.asarray(x) if isinstance(x, (int, list, tuple, np.generic)) else accept(x, name)


def _boolean(x: Any, name: str) -> Array:
    array = _array(x, name)
    if dtype_name(array) != "bool":
        raise DtypeError(
            f"{name}: got dtype {dtype_name(array)}; needs bool, True where it may attend "
            "(scores to add go into bias)"
        )
    return array


def integers(x: Any, name: str) -> Array:
    array = _array(x, name)
    if "int" not in dtype_name(array):
        raise DtypeError(f"{name}: got dtype {dtype_name(array)}; needs integers")
    if dtype_name(array) == "uint64":
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise OptionError(f"{name}: needs integers that fit in 64 bits with a sign")
        array = array.astype(np.int64)
    return array


def _counts(x: Any, name: str) -> Array:
    counts = _positions(x, name)
    if (counts < 0).any():
        raise OptionError(f"{name}: needs 0 or more keys, got {int(counts.min())}")
    return counts


def _positions(x: Any, name: str) -> Array:
    """Integers that can be added to positions without leaving 64 bits."""
    array = integers(x, name)
    if math.prod(array.shape) and max(-int(array.min()), int(array.max())) > FARTHEST:
        raise OptionError(f"{name}: needs integers of at most 2**60, got {int(abs(array).max())}")
    return array


def checked_offset(offset: Offset) -> Offset:
    if isinstance(offset, str):
        if offset != "end":
            raise OptionError(f'offset: got "{offset}"; needs an int, ints per batch, or "end"')
        return offset
    if isinstance(offset, float):
        raise DtypeError(f'offset: got {offset}; needs an int, ints per batch, or "end"')
    return _positions(offset, "offset")


def _per_batch(x: Any, name: str, sizes: Sizes) -> Array:
    return fit(_array(x, name), sizes.batch, name)


def fit(array: Array, shape: tuple[int, ...], name: str) -> Array:
    """A view of array broadcast to shape."""
    try:
        if tuple(np.broadcast_shapes(tuple(array.shape), shape)) != shape:
            raise ValueError
    except ValueError:
        raise ShapeError(
            f"{name}: got shape {tuple(array.shape)}; needs one that broadcasts to {shape}"
        ) from None
    return broadcast(array, shape)
