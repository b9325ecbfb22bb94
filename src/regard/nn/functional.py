"""Functions that take the place of PyTorch's."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import register_pytree_node

from regard._errors import DtypeError, OptionError
from regard._masks import causal, dense
from regard._observation import Observation, Observe, Peak, Top, span_bounds
from regard._problem import number
from regard._score import additive
from regard.nn._directly import attend_directly, is_plain, is_plain_tensor
from regard.nn._fitted import fitted
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
    given = (query, key, value)
    query, key, value, attn_mask = fitted(query, key, value, attn_mask, vector, grouped)
    single = all(x.ndim == 2 for x in given)
    L, S = query.shape[-2], key.shape[-2]
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
    grouped = _flag(enable_gqa, "enable_gqa")
    query, key, value, attn_mask = fitted(query, key, value, attn_mask, grouped=grouped)
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
    fitted(query, key, value, attn_mask, vector)
    query, key, value, options = operands(query, key, value, attn_mask, False, None, False)
    return query, key, value, options | {"score": additive(vector)}


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
