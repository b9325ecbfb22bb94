"""Attention rollout (Abnar and Zuidema 2020) of some rows, layer by layer downwards.

A row of the product of all layers' matrices is a vector times one matrix after another. A vector m
times the weights of a head is, for key j, the sum over queries i of exp(score_ij - lse_i) m_i. That
is attention too: of the keys to the queries, with -lse_i added to the scores and m_i as the values,
times the sum of each row, whose logarithm is its own lse. So a head costs one pass of the kernels
forwards, in memory that grows with L.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from regard._arrays import Array, float64, tensor
from regard._attention import attend
from regard._bias import Bias, DenseBias
from regard._errors import LimitError, OptionError
from regard._masks import Band, Both, Dense, Documents, Either, Grid, Mask, Padding, Sizes
from regard._problem import Problem
from regard._score import Additive
from regard._watch.reading import View
from regard._weights import LIMIT, LSE, Weights

AT_ONCE = 64  # rows that are followed through a layer together


def rolled(views: list[View], tokens: np.ndarray, residual: float) -> np.ndarray:
    """The body of `Trace.rollout`: (len(tokens), L) in float64.

    Raises:
        OptionError: residual is not 0 to 1.
        LimitError: more than `LIMIT` numbers would come of it.
    """
    if not 0.0 <= residual <= 1.0:
        raise OptionError(f"residual: got {residual}; needs a share from 0 to 1")
    count = views[0].queries.count
    if len(tokens) * count > LIMIT:
        raise LimitError(
            f"rollout: {len(tokens) * count:,} numbers were asked for, and at most {LIMIT:,} are "
            "given at once; name fewer tokens"
        )
    found = np.zeros((len(tokens), count))
    found[np.arange(len(tokens)), tokens] = 1.0
    for first in range(0, len(tokens), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        for view in reversed(views):
            found[some] = residual * found[some] + (1.0 - residual) * _through(view, found[some])
    return found


def _through(view: View, mass: np.ndarray) -> np.ndarray:
    """(n, L) times the mean of the heads' weights."""
    rows = np.flatnonzero(mass.any(axis=0))
    total = np.zeros_like(mass)
    if len(rows):
        start, stop = int(rows[0]), int(rows[-1]) + 1
        columns = slice(view.offset, view.offset + view.keys.count)
        for part in view.parts:
            for head in range(part.shape[0]):
                found = _gathered(part[head : head + 1], mass[:, start:stop], start)
                total += found[:, columns]
    return np.asarray(total / len(view.heads))


def _gathered(weights: Weights, mass: np.ndarray, start: int) -> np.ndarray:
    """(n, S), mass (n, rows) of rows from `start` on, times the weights (1, L, S) of a head."""
    rows = range(start, start + mass.shape[1])
    lse = weights.lse_of(rows)[0]
    problem = _turned(weights.problem, rows, np.where(np.isfinite(lse), lse, 0.0))
    value = tensor(np.ascontiguousarray(mass.T[None]), problem.device).to(problem.query.dtype)
    context, seen = attend(replace(problem, value=value), LSE)
    total = np.exp(float64(seen.lse)[0])
    return np.asarray((float64(context)[0] * total[:, None]).T)


def _turned(problem: Problem, rows: range, lse: np.ndarray) -> Problem:
    """The attention of a head's keys to some of its queries, less the lse of these."""
    query, key = (_plain(x) for x in (problem.query, problem.key))
    query = query[:, rows.start : rows.stop]
    less = tensor(-lse, query.device).to(query.dtype)[None, None]
    score = problem.score and Additive(_plain(problem.score.vector))
    bias = less if problem.bias is None else _added(problem.bias, rows, problem.S) + less
    sizes = Sizes((), 1, problem.S, len(rows))
    mask = problem.mask and _mask(problem.mask, rows, problem.S)
    return replace(
        problem,
        query=key,
        key=query,
        mask=mask and mask.bind(sizes),
        bias=DenseBias(bias).bind(sizes),
        score=score,
        sinks=None,
        row=0,
        L_total=problem.S,
    )


def _plain(x: Array) -> Any:
    """Without a graph, in float32 at least."""
    x = tensor(x).detach()
    return x if x.dtype.itemsize >= 4 else x.float()


def _added(bias: Bias, rows: range, S: int) -> Any:
    """(1, S, rows), what is added to the scores of a head, which a dense bias holds anyway."""
    grid = Grid(slice(rows.start, rows.stop, 1), slice(0, S, 1), tensor)
    return tensor(bias.added(grid)).detach().swapaxes(-1, -2)


def _mask(mask: Mask, rows: range, S: int) -> Mask:
    """Which of some rows each of S keys is seen by, for a bound mask without batch dimensions."""
    some = slice(rows.start, rows.stop)
    match mask:
        case Band(offset, left, right, first):
            shift = -offset - rows.start
            if first is None:
                return Band(shift, right, left)
            near: Mask = Padding(np.ones(len(rows), bool), np.arange(S) < int(first))
            if right is not None:
                near = near | Band(shift, right)
            return near if left is None else near & Band(shift, None, left)
        case Padding(keys, queries):
            seen = np.ones(len(rows), bool) if queries is None else queries[some]
            return Padding(seen, keys)
        case Documents(query_ids, key_ids):
            return Documents(key_ids, query_ids[some])
        case Dense(array):
            return Dense(array[..., some, :].swapaxes(-1, -2))
        case Both(a, b) | Either(a, b):
            return type(mask)(_mask(a, rows, S), _mask(b, rows, S))
    raise TypeError(f"no rollout through a mask {type(mask).__name__}")
