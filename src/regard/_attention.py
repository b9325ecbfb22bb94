"""The operator, and the plan of what would run."""

from dataclasses import replace
from typing import Any

from regard._arrays import Array, restore
from regard._backends import Plan, choose, pick
from regard._dropout import draw
from regard._errors import DtypeError
from regard._observation import NOTHING, Observation, Observe
from regard._problem import Problem, make_problem


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout: float = 0.0,
    score: Any = None,
    precision: str = "highest",
    observe: Observe | None = None,
    backend: str | None = None,
) -> Any:
    """softmax(query · keyᵀ x scale) · value (Vaswani et al. 2017), and what its weights show.

    In order: score = query · key x scale, or another score x scale; softcap · tanh(score /
    softcap); + bias; mask; softmax, with one learned sink logit per head as an extra column that
    is dropped; dropout.

    Args:
        query: (*batch, heads, L, d_k); or (L, d_k), one head of one batch, and then key and value
            are two-dimensional too. float64, float32, bfloat16 or float16; NumPy, torch, or any
            library with DLPack and the array API.
        key: (*batch, kv_heads, S, d_k), where heads is a multiple of kv_heads.
        value: (*batch, kv_heads, S, d_v).
        mask: a mask (`causal`, `window`, `padding`, ...) or a boolean array, True where a query
            may attend, of any shape that broadcasts to (*batch, heads, L, S).
        bias: added to the score; `alibi`, `relative`, or an array that broadcasts likewise. -inf
            masks.
        scale: what the products are multiplied by; 1/√d_k unless given.
        softcap: a positive bound for the scores, before the bias.
        sinks: (heads,), logits of the extra column.
        dropout: the chance of a weight to be dropped, 0 or more and less than 1. The others are
            multiplied by 1 / (1 - dropout). torch's generator draws the seed for tensors, NumPy's
            for other arrays.
        score: `additive(vector)`, for vector · tanh(query + key) in place of query · key, with a
            scale of 1 unless it is given (Bahdanau et al. 2014).
        precision: "highest", or "high": products of float32 may be computed as three of bfloat16
            each, where a kernel is faster that way (on a processor with AMX, where many queries
            share a product score), as `regard.plan` tells. A score then errs by about 1e-5 of
            |query| |key| x scale, what follows likewise; a query or key beyond 3e38 gives NaN.
        observe: which statistics to gather on the way.
        backend: "native", "blockwise" or "reference"; chosen by the input unless given, as
            `regard.plan` tells.

    Returns:
        The context, (*batch, heads, L, d_v) or (L, d_v): the same kind of array, dtype and device
        as the query. With `observe`, a pair of the context and an `Observation`. A query that sees
        no key has a zero context. Gradients flow through the context and through the observation's
        lse, to query, key, value, bias, sinks and the score's vector; the other statistics carry
        none.

    Raises:
        ShapeError: sizes that do not fit.
        DtypeError: an argument of a kind or dtype that is not taken.
        OptionError: an option outside its range.
        BackendError: the backend asked for cannot serve; the message says why. Also raised when
            the gradient of a gradient is asked for.
    """
    wanted = _wanted(observe)
    problem = make_problem(
        query,
        key,
        _given(value),
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout=dropout,
        score=score,
        precision=precision,
    )
    context, seen = attend(problem, wanted, backend)

    def give(x: Array) -> Any:
        return restore(x[0] if query.ndim == 2 else x, query)

    return give(context) if observe is None else (give(context), seen.each(give))


def attend(
    problem: Problem, wanted: Observe, backend: str | None = None
) -> tuple[Array, Observation]:
    """The context and observation of a problem, by the backend that serves it."""
    wanted.check(problem.L, problem.S)
    chosen, _ = pick(problem, wanted, backend)
    if problem.dropout:
        problem = replace(problem, seed=draw(problem.query))
    found: tuple[Array, Observation] = chosen.run(problem, wanted)
    return found


def plan(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout: float = 0.0,
    score: Any = None,
    precision: str = "highest",
    observe: Observe | None = None,
    backend: str | None = None,
) -> Plan:
    """Which backend, instruction set and kernel `attention` would run, and why.

    The arguments and errors are those of `attention`; nothing is computed.
    """
    wanted = _wanted(observe)
    problem = make_problem(
        query,
        key,
        _given(value),
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout=dropout,
        score=score,
        precision=precision,
    )
    wanted.check(problem.L, problem.S)
    return choose(problem, wanted, backend)


def _wanted(observe: Any) -> Observe:
    if observe is None:
        return NOTHING
    if isinstance(observe, Observe):
        return observe
    raise DtypeError(f"observe: got {type(observe).__name__}; needs regard.Observe(...) or None")


def _given(value: Any) -> Any:
    if value is None:
        raise DtypeError("value: got None; needs an array (regard.weights needs no value)")
    return value
