"""Functions that take the place of PyTorch's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import register_pytree_node

from regard._errors import DtypeError, OptionError, ShapeError
from regard._masks import causal, dense
from regard._observation import Observation, Observe, Peak, Top, span_bounds
from regard._problem import number
from regard._score import additive
from regard.nn._directly import DTYPES, attend_directly, fits, is_plain, is_plain_tensor
from regard.nn._ops import ALL, UNASKED, Asked
from regard.nn._transforms import attention, attention_directly

UNSEEN = Observation()
PAIRS: dict[str, Any] = {"peak": Peak, "top": Top}


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    observe: Observe | None = None,
) -> Any:
    """`torch.nn.functional.scaled_dot_product_attention` by regard: faster, and watched if asked.

    The arguments are PyTorch's, and so are the results, with three differences that PyTorch leaves
    open: a hidden key contributes nothing even where it holds NaN or inf; a mask and `is_causal`
    may be given together, and then both hold; memory never grows with L x S. As PyTorch does on
    the CPU, a query that sees no key gets a zero context, and passes on zero gradients.

    Works under autograd (first derivatives), torch.compile, torch.export, torch.func.vmap and
    autocast. The kernels serve the CPU; on other devices torch operations do, block by block.

    Args:
        query: (*batch, heads, L, d_k), or (L, d_k). float64, float32, bfloat16 or float16.
        key: (*batch, heads, S, d_k), of the query's dtype and device. Batch and heads broadcast.
        value: (*batch, heads, S, d_v), likewise.
        attn_mask: broadcasts to (*batch, heads, L, S). Boolean, True where a query may attend; or
            float32 or of the query's dtype, to be added to the scores.
        dropout_p: the chance of a weight to be dropped, 0 to 1; always applied, as in PyTorch.
            Which are dropped is drawn from torch's default generator, but not as PyTorch draws it.
        is_causal: query i sees key j when j <= i, also where L and S differ.
        scale: what the products are multiplied by; 1/√d_k unless given.
        enable_gqa: the heads of query are a multiple of those of key and of value, and neighbours
            share one.
        observe: which statistics of the weights to gather on the way. They are of the weights
            before dropout.

    Returns:
        The context, (*batch, heads, L, d_v). With `observe`, a pair of the context and an
        `Observation`, whose lse passes gradients on; the rest carries none. While torch.compile or
        torch.export traces, the Observation is a tuple of the tensors asked for, in this order:
        lse, entropy, peak's weight and key, top's keys and weights, received, map, spans, sink.

    Raises:
        ShapeError: sizes that do not fit.
        DtypeError: an argument of a kind, dtype or device that is not taken.
        OptionError: dropout_p, scale or what is observed is outside its range.
        BackendError: when the derivative of a derivative, or one of forward mode, is asked for.
    """
    if has_torch_function((query, key, value)):
        return handle_torch_function(
            scaled_dot_product_attention,
            (query, key, value),
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            observe=observe,
        )
    tracing = torch.compiler.is_compiling()
    plain = not tracing and is_plain(query, key, value, attn_mask)
    if plain and dropout_p == 0 and observe is None:
        context = attend_directly(query, key, value, attn_mask, is_causal, scale, enable_gqa)
        if context is not None:
            return context
    return _attend(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        observe,
        tracing,
        plain,
        causal=_flag(is_causal, "is_causal"),
        scale=None if scale is None else number(scale, "scale"),
        grouped=_flag(enable_gqa, "enable_gqa"),
    )


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    vector: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    observe: Observe | None = None,
) -> Any:
    """softmax(vector · tanh(query + key)) · value: the additive score (Bahdanau et al. 2014).

    query and key are the projected ones, W q and U k. tanh(query + key), a number for each query,
    key and feature, is never stored, neither forward nor backward. Otherwise as
    `scaled_dot_product_attention` of this module, dtypes, autograd and torch.compile included; the
    weights are those of `regard.attention(..., score=regard.additive(vector))`.

    Args:
        query: (*batch, heads, L, d), or (L, d). float64, float32, bfloat16 or float16.
        key: (*batch, heads, S, d), of the query's dtype and device. Batch and heads broadcast.
        value: (*batch, heads, S, d_v), likewise.
        vector: (d,), or (heads, d) for one of each head; of any of these dtypes, on the query's
            device. It gets a gradient.
        attn_mask: broadcasts to (*batch, heads, L, S). Boolean, True where a query may attend; or
            float32 or of the query's dtype, to be added to the scores.
        dropout_p: the chance of a weight to be dropped, 0 to 1; always applied.
        observe: which statistics of the weights to gather on the way.

    Returns:
        The context, (*batch, heads, L, d_v); with `observe`, a pair of it and an `Observation`, as
        `scaled_dot_product_attention` gives it.

    Raises:
        ShapeError, DtypeError, OptionError, BackendError: as `scaled_dot_product_attention`.
    """
    if has_torch_function((query, key, value, vector)):
        return handle_torch_function(
            additive_attention,
            (query, key, value, vector),
            query,
            key,
            value,
            vector,
            attn_mask,
            dropout_p,
            observe=observe,
        )
    tracing = torch.compiler.is_compiling()
    plain = not tracing and is_plain(query, key, value, attn_mask) and is_plain_tensor(vector)
    return _attend(query, key, value, attn_mask, dropout_p, observe, tracing, plain, vector=vector)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    observe: Observe | None,
    tracing: bool,
    plain: bool,
    *,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
    vector: Tensor | None = None,
) -> Any:
    """What the functions above return, by the operator; directly where the call is `plain`."""
    query, key, value, attn_mask = _cast(query, key, value, attn_mask)
    _check_kinds(query, key, value, attn_mask)
    single = query.ndim == key.ndim == value.ndim == 2
    query, key, value = _fit(query, key, value, grouped)
    L, S = query.shape[-2], key.shape[-2]
    _check_mask(attn_mask, (*query.shape[:-1], S))
    if vector is not None:
        _check_vector(vector, query)
    dropout = _dropout(dropout_p)
    # Drawn here, where torch.compile and vmap see it. With a dropout of 1 there is no choice.
    seed = torch.randint(2**62, (), device="cpu") if 0 < dropout < 1 else None
    attend = attention_directly if plain else attention
    context, lse, statistics = attend(
        query,
        key,
        value,
        attn_mask,
        vector,
        seed,
        causal,
        scale,
        0.0 if seed is None else dropout,
        *_asked(observe, L, S),
    )
    if dropout == 1:
        context = context * 0  # so NaN and inf remain NaN, as in PyTorch
    if single:
        context, lse, statistics = context[0], lse[0], [x[0] for x in statistics]
    if observe is None:
        return context
    seen = [*([lse] if observe.lse else []), *statistics]
    return context, tuple(seen) if tracing else _observation(observe, seen)


def operands(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """The same arguments as `regard.attention` takes them: query, key, value and the options.

    Raises:
        ShapeError, DtypeError: as `scaled_dot_product_attention`.
    """
    query, key, value, attn_mask = _cast(query, key, value, attn_mask)
    _check_kinds(query, key, value, attn_mask)
    query, key, value = _fit(query, key, value, _flag(enable_gqa, "enable_gqa"))
    _check_mask(attn_mask, (*query.shape[:-1], key.shape[-2]))
    mask = causal() if _flag(is_causal, "is_causal") else None
    bias = None
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        mask = dense(attn_mask) if mask is None else mask & attn_mask
    else:
        bias = attn_mask
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": None, "sinks": None}
    return query, key, value, options


def additive_operands(
    query: Tensor, key: Tensor, value: Tensor, vector: Tensor, attn_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """The same for the arguments of `additive_attention`."""
    query, key, value, options = operands(query, key, value, attn_mask, False, None, False)
    _check_vector(vector, query)
    return query, key, value, options | {"score": additive(vector)}


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
        if x.layout is not torch.strided:
            raise DtypeError(f"{name}: got a tensor of layout {x.layout}; needs a strided one")
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


def _flag(x: bool, name: str) -> bool:
    if not isinstance(x, bool):
        raise DtypeError(f"{name}: got {type(x).__name__}; needs True or False")
    return x


def _dropout(dropout_p: float) -> float:
    dropout = number(dropout_p, "dropout_p")
    if not 0.0 <= dropout <= 1.0:
        raise OptionError(f"dropout_p: needs 0 to 1, got {dropout}")
    return dropout


def _asked(observe: Observe | None, L: int, S: int) -> Asked:
    """What is observed, as the operator takes it."""
    if observe is None:
        return UNASKED
    if not isinstance(observe, Observe):
        raise DtypeError(
            f"observe: got {type(observe).__name__}; needs regard.Observe(...) or None"
        )
    spans: Any = (None, None)
    if observe.spans is not None:
        sides = zip(observe.spans, (L, S), strict=True)
        spans = [torch.as_tensor(span_bounds(x, size), device="cpu") for x, size in sides]
    rows = ALL if observe.received == "all" else observe.received or 0
    bins = list(observe.map or ())
    flags = (observe.entropy, observe.peak)
    return Asked(spans[0], spans[1], *flags, observe.top or 0, rows, bins, observe.sink)


def _parts(seen: Observation) -> tuple[list[Any], list[str]]:
    fields = {name: value for name, value in vars(seen).items() if value is not None}
    return list(fields.values()), list(fields)


# So that torch.func's transforms, whose functions return trees of tensors, take one.
register_pytree_node(
    Observation, _parts, lambda values, names: Observation(**dict(zip(names, values, strict=True)))
)


def _observation(observe: Observe, found: list[Tensor]) -> Observation:
    """An observation from the arrays of its fields, one after another."""
    left = iter(found)
    fields: dict[str, Any] = {}
    for name in vars(UNSEEN):
        if getattr(observe, name):
            pair = PAIRS.get(name)
            fields[name] = pair(next(left), next(left)) if pair else next(left)
    return Observation(**fields)
