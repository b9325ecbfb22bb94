"""What `blockwise` learns about the weights, one block of rows after another."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard._observation import Observation, Observe, Peak, Top, bins, span_bounds
from regard._problem import Problem


@dataclass(frozen=True)
class Block:
    """Some whole rows of the matrix."""

    rows: slice
    scores: Tensor  # (*batch, heads, rows, S), -inf where masked
    visible: Tensor  # the same shape
    weights: Tensor  # the same shape, before dropout; 0 where masked
    lse: Tensor  # (*batch, heads, rows)
    sink: Tensor  # (*batch, heads, rows), weight on the sink

    @property
    def seen(self) -> Tensor:
        """(*batch, heads, rows): whether the row sees any key."""
        return self.visible.any(dim=-1)


class Statistics:
    """Gathers an Observation; without lse, which the caller has and through which gradients go."""

    def __init__(self, problem: Problem, observe: Observe, like: Tensor) -> None:
        lead = (*problem.batch, problem.heads)
        L, S = problem.L, problem.S

        def rows(*more: int, dtype: torch.dtype = like.dtype) -> Tensor:
            return like.new_zeros((*lead, L, *more), dtype=dtype)

        self.entropy = rows() if observe.entropy else None
        self.sink = rows() if observe.sink else None
        self.peak = Peak(rows(), rows(dtype=torch.int64)) if observe.peak else None
        k = observe.top
        self.top = Top(rows(k, dtype=torch.int64), rows(k)) if k else None
        last = observe.received_rows
        self.first_received = 0 if last is None else max(0, L - last)
        self.received = like.new_zeros((*lead, S)) if observe.received else None
        spans = observe.spans
        self.map = self.spans = None
        if observe.map:
            self.map = Pool(lead, bins(L, observe.map[0]), bins(S, observe.map[1]), like)
        if spans:
            self.spans = Pool(lead, span_bounds(spans[0], L), span_bounds(spans[1], S), like)

    def add(self, block: Block) -> None:
        if self.entropy is not None:
            self.entropy[..., block.rows] = _entropy(block)
        if self.sink is not None:
            self.sink[..., block.rows] = block.sink
        if self.peak is not None:
            _put_peak(self.peak, block)
        if self.top is not None:
            _put_top(self.top, block)
        if self.received is not None:
            skipped = max(0, self.first_received - block.rows.start)
            self.received += block.weights[..., skipped:, :].sum(dim=-2)
        for pool in (self.map, self.spans):
            if pool is not None:
                pool.add(block)

    def result(self) -> Observation:
        return Observation(
            entropy=self.entropy,
            peak=self.peak,
            top=self.top,
            received=self.received,
            map=None if self.map is None else self.map.mean(),
            spans=None if self.spans is None else self.spans.mean(),
            sink=self.sink,
        )


class Pool:
    """Mean over a span's rows that see something of the weight on a span's keys.

    Spans are added up through lists of their members, not through products with zeros and ones:
    a NaN must stay in the spans it belongs to.
    """

    def __init__(
        self, lead: tuple[int, ...], queries: np.ndarray, keys: np.ndarray, like: Tensor
    ) -> None:
        self.sum = like.new_zeros((*lead, len(queries), len(keys)))
        self.count = like.new_zeros((*lead, len(queries), 1))
        rows, spans = _members(queries)
        order = np.argsort(rows, kind="stable")
        self.rows, self.row_spans = rows[order], spans[order]
        columns, spans = _members(keys)
        self.columns = torch.as_tensor(columns, device=like.device)
        self.column_spans = torch.as_tensor(spans, device=like.device)

    def add(self, block: Block) -> None:
        part = slice(*np.searchsorted(self.rows, [block.rows.start, block.rows.stop]))
        if part.start == part.stop:
            return
        device = block.weights.device
        rows = torch.as_tensor(self.rows[part] - block.rows.start, device=device)
        spans = torch.as_tensor(self.row_spans[part], device=device)
        members = block.weights[..., self.columns]
        mass = members.new_zeros((*members.shape[:-1], self.sum.shape[-1]))
        mass.scatter_add_(-1, self.column_spans.expand_as(members), members)
        self.sum.index_add_(-2, spans, mass[..., rows, :])
        seen = block.seen[..., rows, None].to(mass.dtype)
        self.count.index_add_(-2, spans, seen)

    def mean(self) -> Tensor:
        return self.sum / self.count.clamp(min=1)


def _members(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every position of every span, and the number of the span it is listed for."""
    lengths = spans[:, 1] - spans[:, 0]
    number = np.repeat(np.arange(len(spans)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return spans[number, 0] + within, number


def _entropy(block: Block) -> Tensor:
    surprise = block.lse[..., None] - block.scores
    of_keys = (block.weights * surprise).masked_fill(~block.visible, 0).sum(dim=-1)
    of_sink = torch.where(block.sink > 0, -block.sink * block.sink.log(), 0)
    return torch.where(block.seen, of_keys + of_sink, 0)


def _put_peak(peak: Peak, block: Block) -> None:
    if block.scores.shape[-1]:
        _, key = block.scores.max(dim=-1, keepdim=True)  # ties: the first
        peak.weight[..., block.rows] = block.weights.gather(-1, key)[..., 0]
        peak.key[..., block.rows] = torch.where(block.seen, key[..., 0], -1)
    else:
        peak.key[..., block.rows] = -1


def _put_top(top: Top, block: Block) -> None:
    k = top.keys.shape[-1]
    keys = block.scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    filled = block.visible.gather(-1, keys)
    top.keys[..., block.rows, :] = torch.where(filled, keys, -1)
    top.weights[..., block.rows, :] = block.weights.gather(-1, keys)
