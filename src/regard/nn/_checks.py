"""Arguments of modules, checked: every error names what came and what is needed."""

from typing import Any

import torch
from torch import Tensor

from regard._errors import DtypeError, OptionError, ShapeError


def check_size(x: Tensor, size: int, name: str) -> None:
    """Raises ShapeError: x is not (..., length, size)."""
    if x.ndim < 2 or x.shape[-1] != size:
        raise ShapeError(f"{name}: got shape {tuple(x.shape)}; needs (..., length, {size})")


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


def check_dropout(dropout: float) -> None:
    """Raises OptionError: it is no chance."""
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout: needs 0 or more and less than 1, got {dropout}")


def of_one_head(mask: Tensor | None, full: tuple[int, ...]) -> Tensor | None:
    """A mask of keys (*batch, S), or of queries and keys (*batch, T, S), for (*batch, 1, T, S).

    Raises:
        DtypeError: it is not boolean; ShapeError: it is neither.
    """
    check_boolean(mask, "mask")
    if mask is None:
        return None
    keys = (*full[:-2], full[-1])
    if tuple(mask.shape) == full:
        return mask.unsqueeze(-3)
    if tuple(mask.shape) == keys:
        return mask[..., None, None, :]
    raise ShapeError(
        f"mask: got shape {tuple(mask.shape)}; needs (*batch, S) = {keys} or "
        f"(*batch, T, S) = {full}"
    )
