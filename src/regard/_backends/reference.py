"""The specification: the formula in float64 NumPy, every statistic included.

It stores the L x S matrix, in favour of being short. Every other backend is tested against it.

    score  = query · key x scale                      or vector · tanh(query + key) x scale
             softcap · tanh(score / softcap)          if there is a softcap
             + bias
             -inf                                     where the mask hides the key, or bias is -inf
    lse    = log(sum over keys exp(score) + exp(sink))
    weight = exp(score - lse)                         0 where score is -inf
    context = sum over keys weight x value            of what dropout leaves of the weights
"""

import math
from dataclasses import dataclass

import numpy as np

from regard._arrays import Array, float64, is_torch
from regard._dropout import kept
from regard._masks import Grid
from regard._observation import Observation, Observe, Peak, Top, bins, span_bounds
from regard._problem import Problem

NAME = "reference"


def refusal(problem: Problem, observe: Observe) -> str | None:
    if problem.needs_grad:
        return "it carries no gradient, and a tensor here requires one"
    return None


def kernel(problem: Problem) -> tuple[str, str]:
    return "NumPy", "float64 formula"


def run(problem: Problem, observe: Observe) -> tuple[Array | None, Observation]:
    with np.errstate(all="ignore"):  # NaN and inf in the input behave as IEEE arithmetic says
        rows = Rows.of(problem)
        context = None if problem.value is None else rows.context(problem.value)
        seen = _observe(rows, observe)
    statistics = np.float64 if problem.dtype == "float64" else np.float32
    return (
        None if context is None else _cast_like(context, problem.query),
        seen.each(lambda x: x.astype(statistics) if x.dtype == np.float64 else x),
    )


def scores(problem: Problem, rows: slice, keys: slice) -> np.ndarray:
    """(*batch, heads, rows, keys) in float64, -inf where masked.

    Args:
        problem: a problem whose mask and bias are bound.
        rows, keys: slices with start, stop and a positive step, within L and S.
    """
    first = problem.row
    at = Grid(slice(rows.start + first, rows.stop + first, rows.step), keys, float64)
    query = float64(problem.query[..., rows, :])
    key = _per_query_head(float64(problem.key[..., keys, :]), problem)
    score = _matched(query, key, problem) * problem.scale
    if problem.softcap is not None:
        score = problem.softcap * np.tanh(score / problem.softcap)
    if problem.bias is not None:
        added = problem.bias.added(at)
        score = np.where(added == -np.inf, -np.inf, score + added)
    if problem.mask is not None:
        score = np.where(problem.mask.visible(at), score, -np.inf)
    return score


def _matched(query: np.ndarray, key: np.ndarray, problem: Problem) -> np.ndarray:
    """(*batch, heads, rows, keys): the score before everything else."""
    product: np.ndarray
    if problem.score is None:
        product = query @ key.swapaxes(-1, -2)
        return product
    vector = float64(problem.score.vector)[..., None]
    product = np.empty((*query.shape[:-1], key.shape[-2]))
    for i in range(query.shape[-2]):  # a row at a time: all of L x S x d is too much even for here
        product[..., i, :] = (np.tanh(query[..., i, None, :] + key) @ vector)[..., 0]
    return product


@dataclass(frozen=True)
class Rows:
    """All rows of a problem, in float64."""

    problem: Problem
    scores: np.ndarray  # (*batch, heads, L, S)
    weights: np.ndarray  # the same shape; 0 where masked
    lse: np.ndarray  # (*batch, heads, L)
    sink: np.ndarray  # (*batch, heads, L), weight on the sink

    @classmethod
    def of(cls, problem: Problem) -> "Rows":
        score = scores(problem, slice(0, problem.L, 1), slice(0, problem.S, 1))
        logit = np.full(problem.heads, -np.inf) if problem.sinks is None else float64(problem.sinks)
        logit = np.broadcast_to(logit[:, None], score.shape[:-1])
        greatest = np.maximum(score.max(axis=-1, initial=-np.inf), logit)
        shift = np.where(greatest == -np.inf, 0.0, greatest)
        total = np.exp(score - shift[..., None]).sum(axis=-1) + np.exp(logit - shift)
        seen = (score != -np.inf).any(axis=-1)
        lse = np.where(seen, shift + np.log(total), logit)
        weights = np.where(score == -np.inf, 0.0, np.exp(score - lse[..., None]))
        sink = np.where(logit == -np.inf, 0.0, np.exp(logit - lse))
        return cls(problem, score, weights, lse, sink)

    @property
    def visible(self) -> np.ndarray:
        """(*batch, heads, L, S)."""
        return np.asarray(self.scores != -np.inf)

    @property
    def seen(self) -> np.ndarray:
        """(*batch, heads, L): whether the row sees any key."""
        return np.asarray(self.visible.any(axis=-1))

    def context(self, value: Array) -> np.ndarray:
        """Sum of weight x value, in which a masked key has no part, whatever its value holds."""
        value = _per_query_head(float64(value), self.problem)
        finite = np.isfinite(value)
        weights = self.weights * self.left()
        context: np.ndarray = weights @ np.where(finite, value, 0.0)
        for j in np.unique(np.nonzero(~finite)[-2]):
            part = weights[..., j, None] * np.where(finite, 0.0, value)[..., j, None, :]
            context = context + np.where(self.visible[..., j, None], part, 0.0)
        return context

    def left(self) -> np.ndarray | float:
        """What dropout multiplies weights with: 0, or 1 / (1 - chance)."""
        problem = self.problem
        if not problem.dropout:
            return 1.0
        *lead, L, S = self.weights.shape
        matrix = np.arange(math.prod(lead)).reshape(*lead, 1, 1)
        i, j = problem.row + np.arange(L)[:, None], np.arange(S)
        left: np.ndarray = kept(problem.seed, problem.dropout, matrix, i, j) / (1 - problem.dropout)
        return left

    def entropy(self) -> np.ndarray:
        surprise = np.where(self.visible, self.lse[..., None] - self.scores, 0.0)
        of_keys = (self.weights * surprise).sum(axis=-1)
        of_sink = np.where(self.sink > 0, -self.sink * np.log(self.sink), 0.0)
        return np.where(self.seen, of_keys + of_sink, 0.0)

    def peak(self) -> Peak:
        key = self.scores.argmax(axis=-1) if self.problem.S else np.zeros(self.seen.shape, int)
        return Peak(self.weights.max(axis=-1, initial=0.0), np.where(self.seen, key, -1))

    def top(self, k: int) -> Top:
        keys = np.argsort(-self.scores, axis=-1, kind="stable")[..., :k]
        weights = np.take_along_axis(self.weights, keys, axis=-1)
        filled = np.take_along_axis(self.visible, keys, axis=-1)
        return Top(np.where(filled, keys, -1), weights)

    def received(self, last: int | None) -> np.ndarray:
        first = 0 if last is None else max(0, self.problem.L - last)
        received: np.ndarray = self.weights[..., first:, :].sum(axis=-2)
        return received

    def pooled(self, query_spans: np.ndarray, key_spans: np.ndarray) -> np.ndarray:
        """Mean over a span's rows that see something of the weight on a span's keys."""
        mass = _sums(self.weights, key_spans, axis=-1)
        counted = _sums(self.seen[..., None].astype(np.float64), query_spans, axis=-2)
        mean: np.ndarray = _sums(mass, query_spans, axis=-2) / np.maximum(counted, 1.0)
        return mean


def _observe(rows: Rows, observe: Observe) -> Observation:
    L, S = rows.problem.L, rows.problem.S
    spans = observe.spans
    return Observation(
        lse=rows.lse if observe.lse else None,
        entropy=rows.entropy() if observe.entropy else None,
        peak=rows.peak() if observe.peak else None,
        top=rows.top(observe.top) if observe.top else None,
        received=rows.received(observe.received_rows) if observe.received else None,
        map=rows.pooled(bins(L, observe.map[0]), bins(S, observe.map[1])) if observe.map else None,
        spans=rows.pooled(span_bounds(spans[0], L), span_bounds(spans[1], S)) if spans else None,
        sink=rows.sink if observe.sink else None,
    )


def _per_query_head(x: np.ndarray, problem: Problem) -> np.ndarray:
    """Keys or values repeated for every query head: head h reads h // (heads // kv_heads)."""
    group = problem.heads // max(problem.kv_heads, 1)
    return np.repeat(x, group, axis=-3)


def _sums(x: np.ndarray, spans: np.ndarray, axis: int) -> np.ndarray:
    """x summed over each span of an axis."""
    x = np.moveaxis(x, axis, 0)
    sums = np.zeros((len(spans), *x.shape[1:]))
    for n, (start, stop) in enumerate(spans):
        sums[n] = x[start:stop].sum(axis=0)
    return np.moveaxis(sums, 0, axis)


def _cast_like(x: np.ndarray, like: Array) -> Array:
    if not is_torch(like):
        return x.astype(like.dtype)
    import torch

    return torch.from_numpy(x).to(like)
