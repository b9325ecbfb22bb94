"""A Problem as the compiled kernels take it, and their results as regard gives them."""

from typing import Any

import numpy as np

from regard import _native
from regard._arrays import (
    Array,
    broadcast,
    empty,
    float64,
    is_torch,
    raw,
    requires_grad,
    tensor,
    viewed,
)
from regard._bias import DenseBias, DistanceBias
from regard._masks import Band, Both, Dense, Documents, Either, Load, Mask, Padding
from regard._observation import NOTHING, Observation, Observe, Peak, Top, bins, span_bounds
from regard._problem import Problem

UNSEEN = Observation()
# Of the rows, to be added up at the end where they share numbers of a bias.
BIAS_PARTS = 16


def forward(
    problem: Problem, observe: Observe, learned: Array | None = None
) -> tuple[Array | None, Observation]:
    """The context (None without values) and what was asked about the weights.

    Args:
        learned: what the bias is learned by (see `learned_bias`), in place of the bias's own.
    """
    context = None
    if problem.value is not None:
        context = empty((*problem.query.shape[:-1], problem.d_v), problem.query)
    asked, observation = _prepare(problem, observe)
    _native.forward(_given(problem, context, learned), asked)
    return context, observation


def decodes(problem: Problem) -> bool:
    """Whether the kernel for a few queries would run."""
    read = (problem.key,) if problem.value is None else (problem.key, problem.value)
    adjacent = all(x.stride(-1) == 1 if is_torch(x) else x.strides[-1] == x.itemsize for x in read)
    rows = problem.heads // max(problem.kv_heads, 1) * problem.L
    sizes = problem.S, problem.d_k, problem.d_v
    return _native.decodes(rows, *sizes, adjacent, problem.dtype == "float64")


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | None,
    bias: Array | None,
    scale: float,
    grouped: bool,
    with_lse: bool = False,
) -> Any:
    """The context, or the pair of it and the lse, of CPU tensors (*batch, heads, L or S, d) and a
    bound mask: without a Problem, which takes as long to make as a small attention. None where the
    kernels need views of other shapes, or cannot serve; also where the lse has another dtype."""
    seen = None if mask is None else _lower(mask, _native.Mask())
    return _native.attend(query, key, value, seen, bias, scale, grouped, with_lse)


def gradients(
    of_context: Array,
    query: Array,
    key: Array,
    value: Array,
    context: Array,
    lse: Array,
    mask: Mask | None,
    bias: Array | None,
    scale: float,
) -> tuple[Array, Array, Array] | None:
    """Those of query, key and value, from what `attend` was given and gave. None where that has not
    the shapes and dtypes any more that it had."""
    seen = None if mask is None else _lower(mask, _native.Mask())
    found: tuple[Array, Array, Array] | None = _native.gradients(
        of_context, query, key, value, context, lse, seen, bias, scale
    )
    return found


def backward(
    problem: Problem,
    context: Array,
    lse: np.ndarray,
    of_context: Array,
    of_lse: np.ndarray | None,
    learned: Array | None = None,
) -> dict[str, Array]:
    """Gradients of query, key, value, and of sinks, of what the bias is learned by and of the
    score's vector, (heads, d_k), if they are there.

    Args:
        problem: one with values.
        context, lse: what `forward` gave, in the dtype of the problem and of the kernels.
        of_context, of_lse: the gradients of these two.
        learned: as for `forward`.
    """
    kind = _kind(problem)
    keys = (*problem.batch, problem.kv_heads, problem.S)
    query = empty(problem.query.shape, problem.query)
    key, value = np.empty((*keys, problem.d_k), kind), np.empty((*keys, problem.d_v), kind)
    sinks = None if problem.sinks is None else np.zeros(lse.shape, kind)
    parts = None if learned is None else _parts(problem, learned)
    lead = (*problem.batch, problem.heads)
    vector = None if problem.score is None else np.empty((*lead, problem.d_k), kind)
    given = _given(problem, context, learned)
    of_bias = None if parts is None else _spread(problem, parts)
    rows = np.ascontiguousarray(lse, kind)
    of_rows = None if of_lse is None else np.ascontiguousarray(of_lse, kind)
    _native.backward(
        given, viewed(of_context), rows, of_rows, query, key, value, sinks, of_bias, vector
    )
    gradients = {"query": query, "key": key, "value": value}
    if sinks is not None:
        gradients["sinks"] = sinks.sum(axis=(*range(sinks.ndim - 2), -1))
    if parts is not None:
        gradients["bias"] = parts.sum(axis=0)
    if vector is not None:
        gradients["vector"] = vector.sum(axis=tuple(range(vector.ndim - 2)))
    return gradients


def learned_bias(problem: Problem) -> Array | None:
    """What torch wants the gradient of: a dense bias as it was given, or the numbers by distance,
    (heads, L_total + S - 1), computed from the bias's own so that autograd knows how."""
    bias = problem.bias
    if bias is None or not any(map(requires_grad, vars(bias).values())):
        return None
    if isinstance(bias, DenseBias):
        return bias.array if bias.given is None else bias.given
    assert isinstance(bias, DistanceBias)
    return _by_distance(problem, bias, tensor)


def _by_distance(problem: Problem, bias: DistanceBias, load: Load) -> Array:
    """(heads, L_total + S - 1): of query i and key j at i - j + S - 1."""
    distance = problem.S - 1 - np.arange(max(problem.L_total + problem.S - 1, 0))
    return bias.by_distance(load(distance - bias.offset), load)


def _parts(problem: Problem, learned: Array) -> np.ndarray:
    """Room for the gradient: once where every row has numbers of its own, else for several parts
    of the rows."""
    shape = tuple(learned.shape)
    rows = isinstance(problem.bias, DenseBias) and len(shape) > 1 and shape[-2] == problem.L
    return np.zeros((1 if rows else BIAS_PARTS, *shape), _kind(problem))


def _spread(problem: Problem, x: np.ndarray) -> np.ndarray:
    """(parts, *learned) as (parts, *batch, heads, L_total, S), over the same memory."""
    full = (x.shape[0], *problem.batch, problem.heads, problem.L_total, problem.S)
    if isinstance(problem.bias, DenseBias):
        x = x.reshape(x.shape[0], *[1] * (len(full) - x.ndim), *x.shape[1:])
        return np.broadcast_to(x, full)
    x = x[:, :, max(problem.S - 1, 0) :]
    step = x.strides[-1]
    lead = (x.strides[0], *[0] * len(problem.batch), x.strides[1])
    return np.lib.stride_tricks.as_strided(x, full, (*lead, step, -step))


def _given(
    problem: Problem, context: Array | None, learned: Array | None = None
) -> _native.Problem:
    """The problem as the kernels take it, with room for its context."""
    dense_bias, distance_bias = (None, None) if problem.bias is None else _bias(problem, learned)
    return _native.Problem(
        viewed(problem.query),
        viewed(problem.key),
        None if problem.value is None else viewed(problem.value),
        None if context is None else viewed(context),
        problem.scale,
        problem.softcap or 0.0,
        [] if problem.sinks is None else problem.sinks.tolist(),
        None if problem.mask is None else _lower(problem.mask, _native.Mask()),
        dense_bias,
        distance_bias,
        problem.row,
        problem.dropout,
        problem.seed,
        None if problem.score is None else viewed(problem.score.vector)[:, None],
        problem.precision == "high",
    )


def _kind(problem: Problem) -> type[np.floating[Any]]:
    """The type that the kernels compute in."""
    return np.float64 if problem.dtype == "float64" else np.float32


def _prepare(problem: Problem, observe: Observe) -> tuple[_native.Asked | None, Observation]:
    """Arrays for the answers: as the kernels know them, and as an Observation holds them."""
    if observe is NOTHING:
        return None, UNSEEN
    rows = (*problem.batch, problem.heads, problem.L)
    kind = _kind(problem)
    asked = _native.Asked()
    found: dict[str, Any] = {}
    for name in ("lse", "entropy", "sink"):
        if getattr(observe, name):
            found[name] = np.empty(rows, kind)
            setattr(asked, name, found[name])
    if observe.peak:
        asked.peak_weight, asked.peak_key = np.empty(rows, kind), np.empty(rows, np.int64)
        found["peak"] = Peak(asked.peak_weight, asked.peak_key)
    if observe.top is not None:
        shape = (*rows, observe.top)
        asked.top_keys, asked.top_weights = np.empty(shape, np.int64), np.empty(shape, kind)
        found["top"] = Top(asked.top_keys, asked.top_weights)
    if observe.received is not None:
        found["received"] = asked.received = np.zeros((*rows[:-1], problem.S), kind)
        last = observe.received_rows
        asked.received_rows = problem.L if last is None else min(last, problem.L)
    for name, runs in _pools(problem, observe).items():
        found[name] = np.zeros((*rows[:-1], len(runs[0]), len(runs[1])), kind)
        asked.pool(*runs, found[name])
    return asked, Observation(**found)


def _pools(problem: Problem, observe: Observe) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs of queries and of keys over which means are asked."""
    pools = {}
    if observe.map is not None:
        pools["map"] = (bins(problem.L, observe.map[0]), bins(problem.S, observe.map[1]))
    if observe.spans is not None:
        queries, keys = observe.spans
        pools["spans"] = (span_bounds(queries, problem.L), span_bounds(keys, problem.S))
    contiguous = np.ascontiguousarray
    return {n: (contiguous(q, np.int64), contiguous(k, np.int64)) for n, (q, k) in pools.items()}


def _bias(problem: Problem, learned: Array | None) -> tuple[Array | None, np.ndarray | None]:
    """The bias as the kernels take it: an array in place, or one row of distances per head."""
    match problem.bias:
        case DenseBias(array):
            if learned is not None:
                array = broadcast(learned, (*problem.batch, problem.heads, problem.L, problem.S))
            return viewed(array), None
        case DistanceBias() as bias:
            table = _by_distance(problem, bias, float64) if learned is None else raw(learned)
            return None, np.ascontiguousarray(table[:, None], _kind(problem))
    raise TypeError(f"no kernel for bias {type(problem.bias).__name__}")


def _lower(mask: Mask, program: _native.Mask) -> _native.Mask:
    """Appends a bound mask to a program of the kernels, children first."""
    match mask:
        case Band(offset, left, right, first):
            diagonal = _numbers(offset)
            program.band(
                None if left is None else diagonal - left,
                None if right is None else diagonal + right + 1,
                None if first is None else _numbers(first),
            )
        case Padding(keys, queries):
            program.padding(
                np.ascontiguousarray(raw(keys)),
                None if queries is None else np.ascontiguousarray(raw(queries)),
            )
        case Documents(query_ids, key_ids):
            program.documents(*_small_ids(raw(query_ids), raw(key_ids)))
        case Dense(array):
            program.dense(raw(array))
        case Both(a, b):
            _lower(b, _lower(a, program)).both()
        case Either(a, b):
            _lower(b, _lower(a, program)).either()
        case _:
            raise TypeError(f"no kernel for mask {type(mask).__name__}")
    return program


def _numbers(x: Array) -> np.ndarray:
    """One integer per batch entry, in a row."""
    return np.ascontiguousarray(raw(x).reshape(-1), np.int64)


def _small_ids(query_ids: np.ndarray, key_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Document numbers in 32 bits, renumbered where they do not fit."""
    limit = np.iinfo(np.int32)
    if any(x.size and (x.min() < limit.min or x.max() > limit.max) for x in (query_ids, key_ids)):
        known = np.unique(np.concatenate([query_ids.ravel(), key_ids.ravel()]))
        query_ids, key_ids = np.searchsorted(known, query_ids), np.searchsorted(known, key_ids)
    return np.ascontiguousarray(query_ids, np.int32), np.ascontiguousarray(key_ids, np.int32)
