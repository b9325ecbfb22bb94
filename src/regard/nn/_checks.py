"""Arguments of modules, checked: every error names what came and what is needed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard._errors import DtypeError, OptionError, ShapeError
from regard.nn._directly import fits


def check_size(x: Tensor, size: int | None, name: str) -> None:
    """Raises ShapeError: x is not (..., length, size), of any size where that is None; DtypeError:
    it is nested."""
    if x.is_nested:
        raise DtypeError(f"{name}: got a nested tensor; needs a strided one")
    if x.ndim < 2 or (size is not None and x.shape[-1] != size):
        needed = "size" if size is None else size
        raise ShapeError(f"{name}: got shape {tuple(x.shape)}; needs (..., length, {needed})")


def check_batch(x: Tensor, size: int, name: str) -> None:
    """Raises ShapeError: x is not (B, length, size)."""
    if x.ndim != 3 or x.shape[-1] != size:
        raise ShapeError(f"{name}: got shape {tuple(x.shape)}; needs (B, length, {size})")


def check_projected(x: Tensor, heads: int, size: int, name: str) -> None:
    """Raises ShapeError: x is not (..., heads, length, size)."""
    if x.ndim < 3 or x.shape[-3] != heads or x.shape[-1] != size:
        needed = f"(..., {heads}, length, {size}), as `project` makes them"
        raise ShapeError(f"{name}: got shape {tuple(x.shape)}; needs {needed}")


def common_batch(query: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """The batch dimensions of queries and keys, broadcast.

    Raises:
        ShapeError: they do not broadcast.
    """
    if tuple(query) == tuple(key):
        return tuple(query)
    if len(query) != len(key):
        raise ShapeError(
            f"key: got {len(key)} batch dimensions; needs query's {len(query)} (one of 1 is shared)"
        )
    broadcast: Any = torch.broadcast_shapes
    try:
        return tuple(broadcast(query, key))
    except RuntimeError:
        raise ShapeError(f"key: got batch {tuple(key)}; needs query's {tuple(query)}") from None


def check_boolean(mask: Any, name: str) -> None:
    """Raises DtypeError: neither booleans nor None."""
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype is torch.bool):
        got = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise DtypeError(f"{name}: got {got}; needs booleans, True where a query may attend")


def check_shape(mask: Tensor | None, shape: tuple[int, ...], name: str) -> None:
    """Raises ShapeError: a mask has another shape; DtypeError: it is not boolean."""
    check_boolean(mask, name)
    if mask is not None and tuple(mask.shape) != tuple(shape):
        raise ShapeError(f"{name}: got shape {tuple(mask.shape)}; needs {tuple(shape)}")


def check_mask(mask: Any, full: tuple[int, ...]) -> None:
    """Raises DtypeError: a mask is not boolean; ShapeError: it does not broadcast to full."""
    check_boolean(mask, "mask")
    if mask is not None and not fits(mask, full):
        raise ShapeError(
            f"mask: got shape {tuple(mask.shape)}; needs one that broadcasts to {full}"
        )


def real_lengths(mask: Tensor, shape: tuple[int, ...], name: str, *, least: int) -> Tensor:
    """How many positions of each entry are real: the first ones, before any padding.

    Raises:
        DtypeError, ShapeError: as `check_shape`.
        ShapeError: something real comes after padding, or fewer than `least` positions are real.
    """
    check_shape(mask, shape, name)
    lengths = mask.sum(-1)
    first = torch.arange(mask.shape[-1], device=mask.device) < lengths[..., None]
    if bool((lengths < least).any()) or not torch.equal(first, mask):
        count = f", {least} or more," if least else ""
        raise ShapeError(
            f"{name}: needs True at the first positions of each entry{count} and False after them"
        )
    return lengths


def check_dropout(dropout: float) -> None:
    """Raises OptionError: it is no chance."""
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout: needs 0 or more and less than 1, got {dropout}")


def value_of(key: Tensor, value: Tensor | None, projected: bool) -> Tensor:
    """The value beside a key, which is the key itself unless given.

    Raises:
        OptionError: the key is a projected one, and no value is given; ShapeError: value has less
            than two dimensions.
    """
    if projected and value is None:
        raise OptionError("projected: needs a value beside the keys, got None")
    value = key if value is None else value
    check_size(value, None, "value")
    return value


def of_one_head(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Arguments (*batch, length, ...) with a dimension for heads, of one.

    The mask is of keys (*batch, S), or of queries and keys (*batch, T, S); batches broadcast.

    Raises:
        ShapeError: batches do not fit, or the mask is neither; DtypeError: it is not boolean.
    """
    batch = common_batch(query.shape[:-2], key.shape[:-2])
    q, k, v = query.unsqueeze(-3), key.unsqueeze(-3), value.unsqueeze(-3)
    check_boolean(mask, "mask")
    if mask is None:
        return q, k, v, None
    full = (*batch, query.shape[-2], key.shape[-2])
    keys = (*batch, key.shape[-2])
    if tuple(mask.shape) == full:
        return q, k, v, mask.unsqueeze(-3)
    if tuple(mask.shape) == keys:
        return q, k, v, mask[..., None, None, :]
    raise ShapeError(
        f"mask: got shape {tuple(mask.shape)}; needs (*batch, S) = {keys} or "
        f"(*batch, T, S) = {full}"
    )
