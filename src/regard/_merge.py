"""Partial results joined: attention over some of the keys here, over the others elsewhere."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from regard._arrays import (
    DTYPES,
    Array,
    accept,
    broadcast,
    device_name,
    dtype_name,
    is_torch,
    restore,
)
from regard._errors import DtypeError, ShapeError


def merge(contexts: Sequence[Any], lses: Sequence[Any], sinks: Any = None) -> tuple[Any, Any]:
    """The context and lse over all keys, from those over disjoint parts of them.

    Each part is what `attention(..., observe=Observe(lse=True))` gives for the same queries, some
    of the keys, and no sinks: a chunk of a cache, a shard on another machine, a prefix that many
    requests share (Rabe and Staats 2021, Liu et al. 2023). weight of a part = exp(its lse - lse).

    Args:
        contexts: (*batch, heads, L, d_v) each, of one shape, kind and dtype.
        lses: (*batch, heads, L) each, -inf for a row that sees no key of the part.
        sinks: (heads,), logits of the extra column, which count once.

    Returns:
        The context, in the kind and dtype of the contexts, and the lse, in that of the lses. A row
        that sees no key has a zero context. Gradients flow through both for torch tensors.

    Raises:
        ShapeError: no parts, another number of lses than of contexts, or shapes that do not fit.
        DtypeError: an argument is no floating-point array, or kinds, dtypes or devices are mixed.
    """
    parts = [accept(x, f"contexts[{n}]") for n, x in enumerate(contexts)]
    sizes = [accept(x, f"lses[{n}]") for n, x in enumerate(lses)]
    _check(parts, sizes)
    if sinks is not None:
        sizes.append(_per_row(accept(sinks, "sinks"), sizes[0]))
    wide = any(dtype_name(x) == "float64" for x in (parts[0], sizes[0]))
    kind = "float64" if wide else "float32"
    context, lse = _joined([_cast(x, kind) for x in parts], [_cast(x, kind) for x in sizes])
    context, lse = _cast(context, parts[0].dtype), _cast(lse, sizes[0].dtype)
    return restore(context, contexts[0]), restore(lse, lses[0])


def _check(contexts: list[Array], lses: list[Array]) -> None:
    if not contexts or len(contexts) != len(lses):
        raise ShapeError(
            f"lses: needs one for each context, and at least one, got {len(lses)} for "
            f"{len(contexts)}"
        )
    first = contexts[0]
    shape = tuple(first.shape)
    if len(shape) < 2:
        raise ShapeError(f"contexts[0]: got shape {shape}; needs (*batch, heads, L, d_v)")
    for name, arrays, wanted in (("contexts", contexts, shape), ("lses", lses, shape[:-1])):
        for n, x in enumerate(arrays):
            _check_kind(x, first, f"{name}[{n}]")
            if x.dtype != arrays[0].dtype:
                raise DtypeError(
                    f"{name}[{n}]: got dtype {dtype_name(x)}; needs {name}[0]'s "
                    f"{dtype_name(arrays[0])}"
                )
            if tuple(x.shape) != wanted:
                raise ShapeError(f"{name}[{n}]: got shape {tuple(x.shape)}; needs {wanted}")


def _check_kind(x: Array, like: Array, name: str) -> None:
    if is_torch(x) != is_torch(like):
        raise DtypeError(f"{name}: needs to be the kind of array that contexts[0] is")
    if device_name(x) != device_name(like):
        raise DtypeError(f"{name}: is on {device_name(x)}; needs {device_name(like)}")
    if dtype_name(x) not in DTYPES:
        raise DtypeError(f"{name}: got dtype {dtype_name(x)}; needs one of {', '.join(DTYPES)}")


def _joined(contexts: list[Array], lses: list[Array]) -> tuple[Array, Array]:
    """The formula, in NumPy or torch. More lses than contexts: those without are sinks."""
    xp: Any = sys.modules["torch"] if is_torch(contexts[0]) else np
    seen = xp.stack(lses)
    greatest = xp.amax(seen, 0)
    shift = xp.where(greatest == -np.inf, xp.zeros_like(greatest), greatest)
    shares = xp.exp(seen - shift)
    # Where nothing is seen the total is 0; 1 stands for it, so that no gradient is infinite.
    total = xp.where(greatest == -np.inf, xp.ones_like(greatest), shares.sum(0))
    lse = xp.where(greatest == -np.inf, greatest, shift + xp.log(total))
    context = sum(
        (share / total)[..., None] * xp.where((share > 0)[..., None], part, xp.zeros_like(part))
        for share, part in zip(shares, contexts, strict=False)
    )
    return context, lse


def _per_row(sinks: Array, lse: Array) -> Array:
    """(heads,) as (*batch, heads, L)."""
    _check_kind(sinks, lse, "sinks")
    heads = lse.shape[-2] if lse.ndim > 1 else 1
    if tuple(sinks.shape) != (heads,):
        raise ShapeError(f"sinks: got shape {tuple(sinks.shape)}; needs (heads,) = ({heads},)")
    return broadcast(sinks[:, None] if lse.ndim > 1 else sinks, tuple(lse.shape))


def _cast(x: Array, dtype: Any) -> Array:
    if not is_torch(x):
        return x.astype(dtype)
    return x.to(getattr(sys.modules["torch"], dtype) if isinstance(dtype, str) else dtype)
