"""The masks and biases of several forward passes as those of one matrix.

Every pass sees some rows and some columns of the whole: a prompt all of its own, a decoding step
one row and the keys that its cache holds by then. Each part of a mask (a band along the diagonal,
padding, documents) is found again at its place in the whole and stays a description; what cannot
be described in common becomes booleans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import torch

from regard._arrays import tensor
from regard._bias import Bias
from regard._errors import LimitError
from regard._masks import Band, Both, Dense, Documents, Either, Grid, Mask, Padding, Sizes, dense

LARGEST = 2**30  # booleans of a mask, and numbers of a bias, that are written out


@dataclass(frozen=True, eq=False)
class Part:
    """One pass: its bound mask and bias, and where its first row and column lie in the whole."""

    mask: Mask | None
    bias: Bias | None
    row: int
    column: int
    L: int
    S: int

    def grid(self, rows: slice) -> Grid:
        return Grid(rows, slice(0, self.S, 1), tensor)


def join_masks(parts: Sequence[Part], sizes: Sizes) -> Mask | None:
    """One mask that holds in the rows of each part what that part's own did there.

    Raises:
        LimitError: it would have to be written out, and is too large for that.
    """
    return _described(parts, sizes) or _written_out(parts, sizes)


def _described(parts: Sequence[Part], sizes: Sizes) -> Mask | None:
    """The joined mask as a description; None where there is no common one."""
    told = [list(_conjuncts(part.mask)) for part in parts]
    if any(not isinstance(m, (Band, Padding, Documents)) for masks in told for m in masks):
        return None
    bands = _bands(parts, told)
    joined: list[Mask] = []
    for band in bands:
        if not all(_holds(band, part, masks) for part, masks in zip(parts, told, strict=True)):
            return None
        joined.append(band)
    for kind in (Padding, Documents):
        found = [[m for m in masks if isinstance(m, kind)] for masks in told]
        if any(found):
            one = _padding(parts, found, sizes) if kind is Padding else _documents(parts, found)
            if one is None:
                return None
            joined.append(one)
    whole = all_of(joined)
    hides = all(_hides_the_rest(whole, part, sizes) for part in parts)
    return whole if hides else None


def _conjuncts(mask: Mask | None) -> Iterator[Mask]:
    if isinstance(mask, Both):
        yield from _conjuncts(mask.a)
        yield from _conjuncts(mask.b)
    elif mask is not None:
        yield mask


def all_of(masks: Sequence[Mask | None]) -> Mask | None:
    """One mask for several, of which those that are None hide nothing."""
    some = [mask for mask in masks if mask is not None]
    return reduce(and_, some) if some else None


def _moved(band: Band, part: Part) -> Band:
    """A band of a part in the rows and columns of the whole."""
    first = None if band.first is None else band.first + part.column
    return Band(band.offset + part.column - part.row, band.left, band.right, first)


def _same(a: Band, b: Band) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return x is y or (x is not None and y is not None and bool((x == y).all()))

    sides = (a.left, a.right) == (b.left, b.right)
    return sides and equal(a.offset, b.offset) and equal(a.first, b.first)


def _bands(parts: Sequence[Part], told: Sequence[Sequence[Mask]]) -> list[Band]:
    found: list[Band] = []
    for part, masks in zip(parts, told, strict=True):
        for mask in masks:
            if isinstance(mask, Band):
                moved = _moved(mask, part)
                if not any(_same(moved, band) for band in found):
                    found.append(moved)
    return found


def _holds(band: Band, part: Part, masks: Sequence[Mask]) -> bool:
    """Whether a part has the band, or lies wholly within it."""
    if any(isinstance(m, Band) and _same(_moved(m, part), band) for m in masks):
        return True
    if band.first is not None:
        return False
    first, last = part.row, part.row + part.L - 1
    left = band.left is None or int((last + band.offset - band.left).max()) <= part.column
    end = part.column + part.S - 1
    right = band.right is None or int((first + band.offset + band.right).min()) >= end
    return left and right


def _padding(parts: Sequence[Part], found: Sequence[Sequence[Any]], sizes: Sizes) -> Padding | None:
    """Which keys and queries are real; None where passes say different things of a key."""
    keys = torch.ones((*sizes.batch, sizes.S), dtype=torch.bool)
    queries = torch.ones((*sizes.batch, sizes.L), dtype=torch.bool)
    told = torch.zeros(sizes.S, dtype=torch.bool)
    for part, paddings in zip(parts, found, strict=True):
        here = slice(part.column, part.column + part.S)
        real = torch.ones_like(keys[..., here])
        for padding in paddings:
            real = real & tensor(padding.keys, "cpu")
            if padding.queries is not None:
                queries[..., part.row : part.row + part.L] &= tensor(padding.queries, "cpu")
        if bool((keys[..., here] != real)[..., told[here]].any()):
            return None
        keys[..., here], told[here] = real, True
    return Padding(keys, None if bool(queries.all()) else queries)


def _documents(parts: Sequence[Part], found: Sequence[Sequence[Any]]) -> Documents | None:
    """The documents of all queries and keys; None unless every part tells of its own."""
    if any(len(documents) != 1 for documents in found):
        return None
    rows, columns = [], None
    for part, (documents,) in zip(parts, found, strict=True):
        rows.append(tensor(documents.query_ids, "cpu"))
        ids = tensor(documents.key_ids, "cpu")
        if columns is None:
            columns = ids
            continue
        held = columns.shape[-1] - part.column
        if held < 0 or not torch.equal(columns[..., part.column :], ids[..., :held]):
            return None
        columns = torch.cat([columns, ids[..., held:]], -1)
    return Documents(torch.cat(rows, -1), columns)


def _hides_the_rest(whole: Mask | None, part: Part, sizes: Sizes) -> bool:
    """Whether the rows of a part see nothing beyond the columns that it had."""
    rest = [slice(0, part.column, 1), slice(part.column + part.S, sizes.S, 1)]
    rest = [columns for columns in rest if columns.stop > columns.start]
    if not rest:
        return True
    if whole is None:
        return False
    bound = whole.bind(sizes)
    rows = range(part.row, part.row + part.L)
    # A block of rows at a time: a prompt may be long, and so may what was generated after it.
    blocks = [rows[k : k + 256] for k in range(0, len(rows), 256)]
    return not any(
        bool(bound.visible(Grid(slice(r.start, r.stop, 1), columns, tensor)).any())
        for columns in rest
        for r in blocks
    )


def _written_out(parts: Sequence[Part], sizes: Sizes) -> Mask | None:
    if all(part.mask is None for part in parts) and all(part.S == sizes.S for part in parts):
        return None
    heads = max((_heads(part.mask) for part in parts), default=1)
    shape = (*sizes.batch, heads, sizes.L, sizes.S)
    _check_size(shape, "mask")
    seen = torch.zeros(shape, dtype=torch.bool)
    for part in parts:
        here: Any = torch.tensor(True)
        if part.mask is not None:
            here = part.mask.visible(part.grid(slice(0, part.L, 1)))
            here = here if here.shape[-3] == heads else here[..., :1, :, :]
        seen[_place(part)] = here
    return dense(seen)


def _heads(mask: Mask | None) -> int:
    """1 where a mask is the same for all heads."""
    if isinstance(mask, Dense):
        array: Any = tensor(mask.array)
        return 1 if array.stride(-3) == 0 else int(array.shape[-3])
    if isinstance(mask, (Band, Padding, Documents)) or mask is None:
        return 1
    return max(_heads(side) for side in vars(mask).values())


def join_biases(parts: Sequence[Part], sizes: Sizes) -> Any:
    """What was added to the scores of each part, as one array; None where nothing was."""
    if all(part.bias is None for part in parts):
        return None
    _check_size(sizes.full, "bias")
    whole: Any = None
    for part in parts:
        if part.bias is not None:
            here = part.bias.added(part.grid(slice(0, part.L, 1)))
            if whole is None:
                whole = torch.zeros(sizes.full, dtype=here.dtype)
            whole[_place(part)] = here
    return whole


def _place(part: Part) -> tuple[Any, ...]:
    columns = slice(part.column, part.column + part.S)
    return (..., slice(part.row, part.row + part.L), columns)


def _check_size(shape: tuple[int, ...], name: str) -> None:
    count = torch.Size(shape).numel()
    if count > LARGEST:
        raise LimitError(
            f"{name}: those of the forward passes can only be joined as {count:,} numbers of shape "
            f"{shape}, and at most {LARGEST:,} are written out"
        )


def visible_keys(mask: Any, L: int, S: int) -> int:
    """How many of the first keys any of L queries may see, as far as the bands of a mask tell."""
    stop = S
    for part in _conjuncts(mask):
        if isinstance(part, Band) and part.right is not None and not isinstance(part.offset, str):
            last = int(np.max(part.offset)) + L + part.right
            first = 0 if part.first is None else int(np.max(part.first))
            stop = min(stop, max(last, first, 0))
    return stop


def first_keys(mask: Any, S: int) -> Any:
    """A mask, bound or not, for the first S keys."""
    if isinstance(mask, (Both, Either)):
        return type(mask)(first_keys(mask.a, S), first_keys(mask.b, S))
    if isinstance(mask, Padding):
        return Padding(mask.keys[..., :S], mask.queries)
    if isinstance(mask, Documents):
        return Documents(mask.query_ids, mask.key_ids[..., :S])
    if isinstance(mask, Dense):
        return Dense(mask.array[..., :S])
    return mask
