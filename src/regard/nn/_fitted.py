"""Arguments of the functions, checked and made to fit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard._errors import DtypeError, ShapeError
from regard.nn._directly import fits

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def fitted(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    vector: Tensor | None = None,
    grouped: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """query, key, value and mask as the operator takes them; the vector is checked only.

    Raises:
        ShapeError, DtypeError: as `scaled_dot_product_attention` and `additive_attention`.
    """
    query, key, value, mask = _cast(query, key, value, _spelled(mask))
    _check_kinds(query, key, value, mask)
    query, key, value = _fit(query, key, value, grouped)
    _check_mask(mask, (*query.shape[:-1], key.shape[-2]))
    if vector is not None:
        _check_vector(vector, query)
    return query, key, value, mask


def _spelled(mask: Tensor | None) -> Tensor | None:
    """PyTorch's description of a causal mask as a mask: its own numbers are none."""
    described: Any = mask
    if type(mask).__name__ != "CausalBias":  # whose module loads much that is seldom needed
        return mask
    L, S = described.seq_len_q, described.seq_len_kv
    diagonal = S - L if described.variant.name == "LOWER_RIGHT" else 0
    return torch.ones(L, S, dtype=torch.bool, device=described.device).tril(diagonal)


def _cast(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
    """Under autocast, what PyTorch's own operator would be given."""
    device = query.device.type if isinstance(query, Tensor) else "cpu"
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Any) -> Any:
        eligible = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if eligible and x.device.type == device else x

    return cast(query), cast(key), cast(value), cast(mask)


def _check_kinds(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    named = {"query": query, "key": key, "value": value}
    if mask is not None:
        named["attn_mask"] = mask
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise DtypeError(f"{name}: got {type(x).__name__}; needs a torch tensor")
        if x.layout is not torch.strided or x.is_nested:
            kind = "a nested tensor" if x.is_nested else f"a tensor of layout {x.layout}"
            raise DtypeError(f"{name}: got {kind}; needs a strided one")
        if x.device != query.device:
            raise DtypeError(f"{name}: is on {x.device}; needs query's {query.device}")
    if query.dtype not in DTYPES:
        needed = "float64, float32, bfloat16 or float16"
        raise DtypeError(f"query: got dtype {query.dtype}; needs {needed}")
    for name, x in (("key", key), ("value", value)):
        if x.dtype != query.dtype:
            raise DtypeError(f"{name}: got dtype {x.dtype}; needs query's {query.dtype}")
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise DtypeError(
            f"attn_mask: got dtype {mask.dtype}; needs torch.bool, torch.float32 or query's "
            f"{query.dtype}"
        )


def _fit(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> list[Tensor]:
    """Views of one batch and of heads that fit, each of at least three dimensions."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 2:
            raise ShapeError(f"{name}: got shape {tuple(x.shape)}; needs (*batch, heads, L, d)")
    if key.shape[-1] != query.shape[-1]:
        raise ShapeError(f"key: got d_k = {key.shape[-1]}; needs query's {query.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ShapeError(f"value: got S = {value.shape[-2]}; needs key's {key.shape[-2]}")
    ndim = max(3, query.ndim, key.ndim, value.ndim)
    full = [x if x.ndim == ndim else x[(None,) * (ndim - x.ndim)] for x in (query, key, value)]
    full = _grouped(*full) if enable_gqa else _beside(*full)
    shapes = [x.shape[:-3] for x in full]
    if shapes[0] == shapes[1] == shapes[2]:
        return full
    batch = _broadcast("batch dimensions", *shapes)
    return [x.expand(*batch, *x.shape[-3:]) for x in full]


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Heads of key and value that neighbours of the query's share."""
    heads = query.shape[-3]
    for name, x in (("key", key), ("value", value)):
        count = x.shape[-3]
        if heads % count if count else heads:
            raise ShapeError(f"{name}: got {count} heads; query's {heads} need to be a multiple")
    if key.shape[-3] != value.shape[-3] and heads:  # each has its own groups, so none are left
        return [query, *(x.repeat_interleave(heads // x.shape[-3], -3) for x in (key, value))]
    return [query, key, value]


def _beside(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Heads that broadcast; one head of key and value that all share stays one."""
    heads = [x.shape[-3] for x in (query, key, value)]
    if heads[0] == heads[1] == heads[2] or (heads[1] == heads[2] == 1 and heads[0]):
        return [query, key, value]
    (common,) = _broadcast("heads", *((n,) for n in heads))
    return [x.expand(*x.shape[:-3], common, *x.shape[-2:]) for x in (query, key, value)]


def _broadcast(what: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    broadcast: Any = torch.broadcast_shapes
    try:
        return tuple(broadcast(*shapes))
    except RuntimeError:
        named = ", ".join(
            f"{name} {tuple(shape)}"
            for name, shape in zip(("query", "key", "value"), shapes, strict=True)
        )
        raise ShapeError(f"query, key, value: {what} do not fit: {named}") from None


def _check_mask(mask: Tensor | None, full: tuple[int, ...]) -> None:
    if mask is not None and not fits(mask, full):
        raise ShapeError(
            f"attn_mask: got shape {tuple(mask.shape)}; needs one that broadcasts to {tuple(full)}"
        )


def _check_vector(vector: Tensor, query: Tensor) -> None:
    if not isinstance(vector, Tensor):
        raise DtypeError(f"vector: got {type(vector).__name__}; needs a torch tensor")
    if vector.device != query.device:
        raise DtypeError(f"vector: is on {vector.device}; needs query's {query.device}")
    if vector.dtype not in DTYPES:
        raise DtypeError(f"vector: got dtype {vector.dtype}; needs a floating point one")
    heads, d = query.shape[-3], query.shape[-1]
    if tuple(vector.shape) not in ((d,), (heads, d)):
        raise ShapeError(
            f"vector: got shape {tuple(vector.shape)}; needs (d,) = ({d},) or (heads, d) = "
            f"({heads}, {d})"
        )
