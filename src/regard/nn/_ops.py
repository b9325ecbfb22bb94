"""Attention as two operators of PyTorch's dispatcher, so that whatever traces or transforms a
program (torch.compile, torch.export, torch.func, fake tensors) sees one call that it understands.

    regard::attention           (context, lse, statistics); gradients flow through the first two
    regard::attention_backward  of query, key, value, mask and vector; has no derivative itself

They take tensors and numbers only, of shapes that fit: query (*batch, heads, L, d_k), key
(*batch, kv_heads, S, d_k), value (*batch, kv_heads, S, d_v), of the same batch; a mask, boolean or
to be added, that broadcasts to (*batch, heads, L, S); the vector of the additive score, (d_k,) or
(heads, d_k); the seed of dropout; spans (n, 2) int64.
Backends compute; here their results become tensors. `_transforms` says how the operators behave
under autograd and vmap.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard._arrays import raw, tensor
from regard._backends import blockwise, native_call, pick
from regard._masks import causal as causal_mask
from regard._observation import Observation, Observe
from regard._problem import Problem, make_problem
from regard._score import additive

LIBRARY: Any = torch.library.Library("regard", "DEF")  # type: ignore[no-untyped-call]


class Call(NamedTuple):
    """The arguments that both operators share, in the order of their schemas."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    vector: Tensor | None
    seed: Tensor | None
    causal: bool
    scale: float | None
    dropout: float


class Asked(NamedTuple):
    """What is observed, which `attention` takes after these."""

    query_spans: Tensor | None = None
    key_spans: Tensor | None = None
    entropy: bool = False
    peak: bool = False
    top: int = 0
    received: int = 0  # how many of the last queries, or ALL
    map: Sequence[int] = ()
    sink: bool = False


ALL = -1
UNASKED = Asked()
SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    float: "float",
    float | None: "float?",
    Sequence[int]: "int[]",
}


def _schema(*of: type[NamedTuple]) -> str:
    """Their fields as a schema spells arguments."""
    fields = [field for arguments in of for field in arguments.__annotations__.items()]
    return ", ".join(f"{SCHEMA[kind]} {name}" for name, kind in fields)


LIBRARY.define(
    f"attention({_schema(Call, Asked)}) -> (Tensor context, Tensor lse, Tensor[] statistics)"
)
LIBRARY.define(
    "attention_backward(Tensor? of_context, Tensor? of_lse, Tensor context, Tensor lse, "
    f"{_schema(Call)}, bool of_mask) "
    "-> (Tensor query, Tensor key, Tensor value, Tensor mask, Tensor vector)"
)
attention = torch.ops.regard.attention.default
attention_backward = torch.ops.regard.attention_backward.default


def flat(seen: Observation) -> Iterator[Any]:
    """The arrays of an observation but for its lse, in the order of its fields."""
    for name, value in vars(seen).items():
        if value is not None and name != "lse":
            yield from value if isinstance(value, tuple) else (value,)


def compute_attention(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`attention`, past the dispatcher."""
    call, asked = _split(arguments)
    problem, observe = _problem(call), _observe(asked)
    observe.check(problem.L, problem.S)
    backend, _ = pick(problem, observe)
    with torch.no_grad():
        context, seen = backend.run(problem, observe)
    assert context is not None
    device = call.query.device
    return context, tensor(seen.lse, device), [tensor(x, device) for x in flat(seen)]


def _attention_backward(
    of_context: Tensor | None,
    of_lse: Tensor | None,
    context: Tensor,
    lse: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    call, of_mask = Call(*arguments[:-1]), arguments[-1]
    problem = _problem(call)
    learned = call.mask if of_mask else None
    given = torch.zeros_like(context) if of_context is None else of_context
    if pick(problem, Observe())[0].NAME == "native":
        # In a row, as the kernels take rows: under vmap they are expanded views.
        rows = None if of_lse is None else raw(of_lse.to(lse).contiguous())
        of_rows = raw(lse.contiguous())
        found = native_call.backward(problem, context, of_rows, given, rows, learned)
    else:
        found = _blockwise_backward(problem, given, of_lse, lse, learned)

    def gradient(name: str, x: Tensor | None) -> Tensor:
        if x is None:
            return call.query.new_empty(0)
        return tensor(found[name], x.device).to(x.dtype).sum_to_size(x.shape)

    return (
        gradient("query", call.query),
        gradient("key", call.key),
        gradient("value", call.value),
        gradient("bias", learned),
        gradient("vector", call.vector),
    )


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
    query, key, value, _, bias, vector = blockwise._backward(work, of_context, rows, of_bias)
    return {"query": query, "key": key, "value": value, "bias": bias, "vector": vector}


def _split(arguments: tuple[Any, ...]) -> tuple[Call, Asked]:
    count = len(Call._fields)
    return Call(*arguments[:count]), Asked(*arguments[count:])


def _problem(call: Call) -> Problem:
    seen: Any = causal_mask() if call.causal else None
    bias = None
    if call.mask is not None:
        if call.mask.dtype is torch.bool:
            seen = call.mask if seen is None else seen & call.mask
        else:
            bias = call.mask
    return make_problem(
        call.query,
        call.key,
        call.value,
        mask=seen,
        bias=bias,
        scale=call.scale,
        dropout=call.dropout,
        score=None if call.vector is None else additive(call.vector),
        seed=0 if call.seed is None else int(call.seed),
    )


def _observe(asked: Asked) -> Observe:
    """What the arguments ask for; always the lse, which the gradient needs."""
    spans = None
    if asked.query_spans is not None and asked.key_spans is not None:
        spans = (asked.query_spans.cpu().numpy(), asked.key_spans.cpu().numpy())
    return Observe(
        lse=True,
        entropy=asked.entropy,
        peak=asked.peak,
        top=asked.top or None,
        received="all" if asked.received == ALL else asked.received or None,
        map=(asked.map[0], asked.map[1]) if asked.map else None,
        spans=spans,
        sink=asked.sink,
    )


def _fake_attention(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    call, asked = _split(arguments)
    query, key, value = call[:3]
    lead, rows = query.shape[:-2], query.shape[:-1]
    kind = torch.float64 if query.dtype is torch.float64 else torch.float32

    def numbers(*shape: Any, dtype: torch.dtype = kind) -> Tensor:
        return query.new_empty(shape, dtype=dtype)

    seen = []
    if asked.entropy:
        seen.append(numbers(*rows))
    if asked.peak:
        seen += [numbers(*rows), numbers(*rows, dtype=torch.int64)]
    if asked.top:
        seen += [numbers(*rows, asked.top, dtype=torch.int64), numbers(*rows, asked.top)]
    if asked.received:
        seen.append(numbers(*lead, key.shape[-2]))
    if asked.map:
        seen.append(numbers(*lead, *asked.map))
    if asked.query_spans is not None and asked.key_spans is not None:
        seen.append(numbers(*lead, asked.query_spans.shape[0], asked.key_spans.shape[0]))
    if asked.sink:
        seen.append(numbers(*rows))
    return query.new_empty((*rows, value.shape[-1])), numbers(*rows), seen


def _fake_attention_backward(*arguments: Any) -> tuple[Tensor, ...]:
    call, of_mask = Call(*arguments[4:-1]), arguments[-1]
    given = (call.query, call.key, call.value, call.mask if of_mask else None, call.vector)
    return tuple(call.query.new_empty(0) if x is None else x.new_empty(x.shape) for x in given)


LIBRARY.impl("attention", compute_attention, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", _attention_backward, "CompositeExplicitAutograd")
torch.library.register_fake(attention, _fake_attention, lib=LIBRARY)
torch.library.register_fake(attention_backward, _fake_attention_backward, lib=LIBRARY)
