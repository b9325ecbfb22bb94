"""The formula in torch operations, block of rows by block of rows: any device, with gradients.

A block holds whole rows, so that its softmax and statistics are final and nothing is rescaled.
Backward computes each block's weights again: L x S is stored neither forward nor backward.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from regard._arrays import Array, is_torch, tensor
from regard._backends import blockwise_additive as additive
from regard._backends.blockwise_statistics import Block, Statistics
from regard._backends.derivative import first_derivative
from regard._bias import Bias, DenseBias
from regard._dropout import kept
from regard._masks import Grid
from regard._observation import Observation, Observe
from regard._problem import Problem
from regard._score import Additive

NAME = "blockwise"

# Scores of one block. Its temporaries, a handful of arrays of this size, take some 100 MB; smaller
# blocks would leave a GPU idle.
BLOCK = 2**22


def refusal(problem: Problem, observe: Observe) -> str | None:
    return "tensors on meta hold no numbers" if problem.device == "meta" else None


def kernel(problem: Problem) -> tuple[str, str]:
    return problem.device, f"torch in {_dtype(problem)}".replace("torch.", "")


def run(problem: Problem, observe: Observe) -> tuple[Array | None, Observation]:
    key = tensor(problem.key)
    ready = replace(
        problem,
        query=tensor(problem.query),
        key=key,
        # When the weights alone are asked about, the value has no width.
        value=key[..., :0] if problem.value is None else tensor(problem.value),
        sinks=None if problem.sinks is None else tensor(problem.sinks, key.device),
        score=_scored(tensor(problem.score.vector, key.device) if problem.score else None),
    )
    if problem.needs_grad:
        name, learned = _learned(problem.bias)
        vector = None if ready.score is None else ready.score.vector
        inputs = (ready.query, ready.key, ready.value, ready.sinks, learned, vector)
        apply: Any = _Attention.apply
        context, lse, seen = apply(ready, observe, name, *inputs)
    else:
        context, lse, seen = _forward(_Work.of(ready), observe)
    seen = replace(seen, lse=lse if observe.lse else None)
    return None if problem.value is None else context, seen


@dataclass(frozen=True)
class _Work:
    """A problem in the dtype that is computed in."""

    problem: Problem
    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor  # (heads, 1), -inf where there is none
    vector: Tensor | None  # (heads, d_k), of the additive score

    @classmethod
    def of(cls, problem: Problem) -> "_Work":
        dtype = _dtype(problem)
        query = problem.query.detach().to(dtype)
        none = query.new_full((problem.heads,), -torch.inf)
        sinks = none if problem.sinks is None else problem.sinks.detach().to(dtype)
        return cls(
            problem,
            query,
            problem.key.detach().to(dtype),
            cast(Tensor, problem.value).detach().to(dtype),
            sinks[:, None],
            None if problem.score is None else problem.score.vector.detach().to(dtype),
        )

    def load(self, x: Array) -> Tensor:
        """A stored array of a mask or bias as a tensor to compute with."""
        loaded = tensor(x, self.query.device)
        return loaded.to(self.query.dtype) if loaded.is_floating_point() else loaded

    def grid(self, rows: slice) -> Grid:
        first = self.problem.row
        there = slice(rows.start + first, rows.stop + first, 1)
        return Grid(there, slice(0, self.problem.S, 1), self.load)

    def blocks(self) -> Iterator[slice]:
        """Runs of rows whose scores fit into a block."""
        L, S = self.problem.L, self.problem.S
        one_row = math.prod((*self.problem.batch, self.problem.heads, S))
        step = max(1, BLOCK // max(one_row, 1))
        for start in range(0, L, step):
            yield slice(start, min(start + step, L))

    def fold(self, x: Tensor) -> Tensor:
        """(*batch, heads, rows, n) with the query heads of a key head under one another."""
        *batch, heads, rows, n = x.shape
        kv_heads = self.problem.kv_heads
        return x.reshape(*batch, kv_heads, heads // max(kv_heads, 1) * rows, n)

    def unfold(self, x: Tensor, rows: slice) -> Tensor:
        """The opposite of `fold`."""
        batch, heads = self.problem.batch, self.problem.heads
        return x.reshape(*batch, heads, rows.stop - rows.start, x.shape[-1])

    def capped(self, rows: slice) -> Tensor:
        """Scores after the scale; with a softcap, tanh(score / softcap)."""
        query = self.query[..., rows, :]
        if self.vector is None:
            score = self.unfold(self.fold(query) @ self.key.mT, rows)
        else:
            score = additive.scores(query, self.key, self.vector)
        score = score.mul_(self.problem.scale)
        return score if self.problem.softcap is None else score.div_(self.problem.softcap).tanh_()

    def block(self, rows: slice, score: Tensor) -> Block:
        """What follows from the result of `capped`."""
        problem = self.problem
        if problem.softcap is not None:
            score = score * problem.softcap
        if problem.bias is not None:
            added = problem.bias.added(self.grid(rows)).detach()
            score = torch.where(added == -torch.inf, -torch.inf, score + added)
        if problem.mask is not None:
            score = torch.where(problem.mask.visible(self.grid(rows)), score, -torch.inf)
        visible = score != -torch.inf
        greatest = score.amax(dim=-1) if problem.S else score.new_full(score.shape[:-1], -torch.inf)
        greatest = torch.maximum(greatest, self.sinks)
        shift = greatest.masked_fill(greatest == -torch.inf, 0)
        weights = (score - shift[..., None]).exp_()
        sink = (self.sinks - shift).exp_()
        total = weights.sum(dim=-1) + sink
        lse = torch.where(visible.any(dim=-1), shift + total.log(), self.sinks)
        weights = weights.div_(total[..., None]).masked_fill_(~visible, 0)
        sink = (sink / total).masked_fill_(self.sinks == -torch.inf, 0)
        return Block(rows, score, visible, weights, lse, sink)

    def dropped(self, rows: slice, x: Tensor) -> Tensor:
        """What dropout leaves of a block; the same entries whenever it is asked."""
        problem = self.problem
        if not problem.dropout:
            return x

        def numbers(start: int, stop: int) -> Tensor:
            return torch.arange(start, stop, device=x.device)

        lead = x.shape[:-2]
        matrix = numbers(0, math.prod(lead)).reshape(*lead, 1, 1)
        i = numbers(rows.start, rows.stop)[:, None] + problem.row
        left = kept(problem.seed, problem.dropout, matrix, i, numbers(0, problem.S))
        return x.masked_fill(~left, 0) / (1 - problem.dropout)


class _Attention(torch.autograd.Function):
    """(context, lse, Observation), with gradients through the first two."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        observe: Observe,
        learned: str | None,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Observation]:
        ctx.save_for_backward(*inputs)
        # Without the arrays: they are saved above, where autograd watches over them.
        ctx.problem = replace(problem, query=None, key=None, value=None, sinks=None, score=None)
        ctx.learned = learned
        return _forward(_Work.of(problem), observe)

    @staticmethod
    def backward(ctx: Any, d_context: Tensor, d_lse: Tensor, _: None) -> Any:
        wanted = ctx.needs_input_grad[3:]

        def gradients(d_context: Tensor, d_lse: Tensor, *inputs: Any) -> tuple[Any, ...]:
            query, key, value, sinks, parameter, vector = inputs
            given = {"query": query, "key": key, "value": value, "sinks": sinks}
            problem = replace(ctx.problem, **given, score=_scored(vector))
            learned = (
                None if ctx.learned is None else _BiasGradient(problem, ctx.learned, parameter)
            )
            found = _backward(_Work.of(problem), d_context, d_lse, learned)
            return tuple(
                gradient.to(x) if want and gradient is not None else None
                for gradient, x, want in zip(found, inputs, wanted, strict=True)
            )

        gradient = first_derivative(gradients, d_context, d_lse, *ctx.saved_tensors)
        return None, None, None, *gradient


class _BiasGradient:
    """Gathers the gradient of the array that a bias is learned by."""

    def __init__(self, problem: Problem, name: str, parameter: Any) -> None:
        self.bias: Any = problem.bias
        self.name = name
        self.parameter = parameter.detach().to(_dtype(problem))
        self.total = torch.zeros_like(self.parameter)

    def add(self, at: Grid, d_scores: Tensor) -> None:
        if isinstance(self.bias, DenseBias):
            total = self.total[(None,) * (d_scores.ndim - self.total.ndim)]
            part = total if total.shape[-2] == 1 else total[..., at.rows, :]
            part += d_scores.sum_to_size(part.shape)
        else:
            with torch.enable_grad():
                parameter = self.parameter.requires_grad_()
                added = replace(self.bias, **{self.name: parameter}).added(at)
                (part,) = torch.autograd.grad(
                    added, parameter, d_scores.sum_to_size(added.shape).to(added)
                )
            self.total += part


def _forward(work: _Work, observe: Observe) -> tuple[Tensor, Tensor, Observation]:
    problem = work.problem
    lead = (*problem.batch, problem.heads, problem.L)
    context = problem.query.new_empty((*lead, problem.d_v))
    lse = work.query.new_empty(lead)
    statistics = Statistics(problem, observe, work.query)
    with torch.autocast(work.query.device.type, enabled=False):
        for rows in work.blocks():
            block = work.block(rows, work.capped(rows))
            weights = work.fold(work.dropped(rows, block.weights))
            read = _contract(weights, work.value, work.fold(block.visible))
            context[..., rows, :] = work.unfold(read, rows).to(context.dtype)
            lse[..., rows] = block.lse
            statistics.add(block)
    return context, lse, statistics.result()


def _backward(
    work: _Work, d_context: Tensor, d_lse: Tensor, of_bias: _BiasGradient | None
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, sinks, the bias's parameter and the score's vector, in the
    computing dtype.

    With P the weights, K what dropout leaves of them, D = d_context · valueᵀ x K, and the total
    T = sum over keys P x D of a row: d_score = P x (D - T + d_lse), the sink's likewise with D = 0.
    """
    problem = work.problem
    d_query, d_key = torch.zeros_like(work.query), torch.zeros_like(work.key)
    d_value, d_sinks = torch.zeros_like(work.value), torch.zeros_like(work.sinks[:, 0])
    d_vector = None if work.vector is None else torch.zeros_like(work.vector)
    with torch.autocast(work.query.device.type, enabled=False):
        for rows in work.blocks():
            capped = work.capped(rows)
            block = work.block(rows, capped)
            hidden = ~block.visible
            visible = work.fold(block.visible)
            given = work.fold(d_context[..., rows, :].to(work.query.dtype))
            read = work.fold(work.dropped(rows, block.weights))
            d_value += _contract(read.mT, given, visible.mT)
            d_weights = work.dropped(rows, work.unfold(given @ work.value.mT, rows))
            d_weights = d_weights.masked_fill_(hidden, 0)
            total = (block.weights * d_weights).sum(dim=-1)
            rest = d_lse[..., rows].to(work.query.dtype) - total
            d_scores = (block.weights * (d_weights + rest[..., None])).masked_fill_(hidden, 0)
            d_sinks += (block.sink * rest).sum(dim=-1).sum_to_size(d_sinks.shape)
            if of_bias is not None:
                of_bias.add(work.grid(rows), d_scores)
            if problem.softcap is not None:
                d_scores = (d_scores * (1 - capped.square())).masked_fill_(hidden, 0)
            d_query[..., rows, :], of_keys, of_vector = _matched(
                work, rows, d_scores.mul_(problem.scale), visible
            )
            d_key += of_keys
            if d_vector is not None and of_vector is not None:
                d_vector += of_vector
    return d_query, d_key, d_value, d_sinks, None if of_bias is None else of_bias.total, d_vector


def _matched(
    work: _Work, rows: slice, d_scores: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What gradients of the scores before the scale give to these queries, to the keys, and to the
    score's vector."""
    query = work.query[..., rows, :]
    if work.vector is not None:
        return additive.gradients(d_scores, query, work.key, work.vector)
    folded = work.fold(d_scores)
    d_query = work.unfold(_contract(folded, work.key, visible), rows)
    return d_query, _contract(folded.mT, work.fold(query), visible.mT), None


def _contract(a: Tensor, b: Tensor, live: Tensor) -> Tensor:
    """a @ b, in which b[j] has no part in row i unless live[i, j], whatever it holds.

    `a` is 0 where it is not live. NaN and inf of `b` that are live act as IEEE arithmetic says.
    """
    finite = b.isfinite()
    if finite.all():
        return a @ b

    def meet(x: Tensor, y: Tensor) -> Tensor:
        return (x.to(a.dtype) @ y.to(a.dtype)) > 0

    up, down = b == torch.inf, b == -torch.inf
    rises = meet(a > 0, up) | meet(a < 0, down)
    falls = meet(a > 0, down) | meet(a < 0, up)
    undefined = meet(live, b.isnan()) | meet(live & (a == 0), up | down) | (rises & falls)
    result = a @ b.masked_fill(~finite, 0)
    result = result.masked_fill_(rises, torch.inf).masked_fill_(falls, -torch.inf)
    return result.masked_fill_(undefined, torch.nan)


def _learned(bias: Bias | None) -> tuple[str | None, Tensor | None]:
    """The array of a bias that requires a gradient, and its name."""
    # From the last: a dense bias holds, after its broadcast view, the array as it was given.
    for name, x in reversed(vars(bias).items() if bias is not None else ()):
        if is_torch(x) and x.requires_grad:
            return name, x
    return None, None


def _scored(vector: Tensor | None) -> Additive | None:
    return None if vector is None else Additive(vector)


def _dtype(problem: Problem) -> torch.dtype:
    return torch.float64 if problem.dtype == "float64" else torch.float32
