"""Attention as two operators of PyTorch's dispatcher, so that whatever traces or transforms a
program (torch.compile, torch.export, torch.func, fake tensors) sees one call that it understands.

    regard::attention           (context, lse, statistics); gradients flow through the first two
    regard::attention_backward  of query, key, value and mask; has no derivative itself

They take tensors and numbers only, of shapes that fit: query (*batch, heads, L, d_k), key
(*batch, kv_heads, S, d_k), value (*batch, kv_heads, S, d_v), of the same batch; a mask, boolean or
to be added, that broadcasts to (*batch, heads, L, S); the seed of dropout; spans (n, 2) int64.
Backends compute; here their results become tensors. `_transforms` says how the operators behave
under autograd and vmap.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regard._arrays import raw, tensor
from regard._backends import blockwise, native_call, pick
from regard._masks import causal as causal_mask
from regard._observation import Observation, Observe
from regard._problem import Problem, make_problem

LIBRARY: Any = torch.library.Library("regard", "DEF")  # type: ignore[no-untyped-call]

LIBRARY.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, "
    "bool causal, float? scale, float dropout, Tensor? query_spans, Tensor? key_spans, "
    "bool entropy, bool peak, int top, int received, int[] map, bool sink) "
    "-> (Tensor context, Tensor lse, Tensor[] statistics)"
)
LIBRARY.define(
    "attention_backward(Tensor? of_context, Tensor? of_lse, Tensor context, Tensor lse, "
    "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, "
    "bool causal, float? scale, float dropout, bool of_mask) "
    "-> (Tensor query, Tensor key, Tensor value, Tensor mask)"
)
attention = torch.ops.regard.attention.default
attention_backward = torch.ops.regard.attention_backward.default

ALL = -1  # queries that `received` sums over
UNASKED: tuple[Any, ...] = (None, None, False, False, 0, 0, [], False)  # the schema's last


def flat(seen: Observation) -> Iterator[Any]:
    """The arrays of an observation but for its lse, in the order of its fields."""
    for name, value in vars(seen).items():
        if value is not None and name != "lse":
            yield from value if isinstance(value, tuple) else (value,)


def compute_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    *asked: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    problem = _problem(query, key, value, mask, seed, causal, scale, dropout)
    observe = _observe(*asked)
    observe.check(problem.L, problem.S)
    backend, _ = pick(problem, observe)
    with torch.no_grad():
        context, seen = backend.run(problem, observe)
    assert context is not None
    device = query.device
    return context, tensor(seen.lse, device), [tensor(x, device) for x in flat(seen)]


def _attention_backward(
    of_context: Tensor | None,
    of_lse: Tensor | None,
    context: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(query, key, value, mask, seed, causal, scale, dropout)
    learned = mask if of_mask else None
    given = torch.zeros_like(context) if of_context is None else of_context
    if pick(problem, Observe())[0].NAME == "native":
        # In a row, as the kernels take rows: under vmap they are expanded views.
        rows = None if of_lse is None else raw(of_lse.to(lse).contiguous())
        of_rows = raw(lse.contiguous())
        found = native_call.backward(problem, context, of_rows, given, rows, learned)
    else:
        found = _blockwise_backward(problem, given, of_lse, lse, learned)

    def gradient(name: str, x: Tensor) -> Tensor:
        return tensor(found[name], x.device).to(x.dtype)

    of_bias = query.new_empty(0) if learned is None else gradient("bias", learned)
    return gradient("query", query), gradient("key", key), gradient("value", value), of_bias


def _blockwise_backward(
    problem: Problem,
    of_context: Tensor,
    of_lse: Tensor | None,
    lse: Tensor,
    learned: Tensor | None,
) -> dict[str, Any]:
    work = blockwise._Work.of(problem)
    of_bias = None if learned is None else blockwise._BiasGradient(problem, "given", learned)
    rows = torch.zeros_like(lse) if of_lse is None else of_lse
    query, key, value, _, bias = blockwise._backward(work, of_context, rows, of_bias)
    return {"query": query, "key": key, "value": value, "bias": bias}


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
) -> Problem:
    seen: Any = causal_mask() if causal else None
    bias = None
    if mask is not None:
        if mask.dtype is torch.bool:
            seen = mask if seen is None else seen & mask
        else:
            bias = mask
    drawn = 0 if seed is None else int(seed)
    return make_problem(
        query, key, value, mask=seen, bias=bias, scale=scale, dropout=dropout, seed=drawn
    )


def _observe(
    query_spans: Tensor | None,
    key_spans: Tensor | None,
    entropy: bool,
    peak: bool,
    top: int,
    received: int,
    map: list[int],
    sink: bool,
) -> Observe:
    """What the schema's arguments ask for; always the lse, which the gradient needs."""
    spans = None
    if query_spans is not None and key_spans is not None:
        spans = (query_spans.cpu().numpy(), key_spans.cpu().numpy())
    return Observe(
        lse=True,
        entropy=entropy,
        peak=peak,
        top=top or None,
        received="all" if received == ALL else received or None,
        map=(map[0], map[1]) if map else None,
        spans=spans,
        sink=sink,
    )


def _fake_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    query_spans: Tensor | None,
    key_spans: Tensor | None,
    entropy: bool,
    peak: bool,
    top: int,
    received: int,
    map: list[int],
    sink: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    lead, rows = query.shape[:-2], query.shape[:-1]
    kind = torch.float64 if query.dtype is torch.float64 else torch.float32

    def numbers(*shape: Any, dtype: torch.dtype = kind) -> Tensor:
        return query.new_empty(shape, dtype=dtype)

    seen = []
    if entropy:
        seen.append(numbers(*rows))
    if peak:
        seen += [numbers(*rows), numbers(*rows, dtype=torch.int64)]
    if top:
        seen += [numbers(*rows, top, dtype=torch.int64), numbers(*rows, top)]
    if received:
        seen.append(numbers(*lead, key.shape[-2]))
    if map:
        seen.append(numbers(*lead, *map))
    if query_spans is not None and key_spans is not None:
        seen.append(numbers(*lead, query_spans.shape[0], key_spans.shape[0]))
    if sink:
        seen.append(numbers(*rows))
    return query.new_empty((*rows, value.shape[-1])), numbers(*rows), seen


def _fake_attention_backward(
    of_context: Tensor | None,
    of_lse: Tensor | None,
    context: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(x: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    of_bias = like(mask) if of_mask and mask is not None else query.new_empty(0)
    return like(query), like(key), like(value), of_bias


LIBRARY.impl("attention", compute_attention, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", _attention_backward, "CompositeExplicitAutograd")
torch.library.register_fake(attention, _fake_attention, lib=LIBRARY)
torch.library.register_fake(attention_backward, _fake_attention_backward, lib=LIBRARY)
