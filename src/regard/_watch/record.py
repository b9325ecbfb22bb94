"""One attention of a model while it is watched: its calls, joined to the rows of one matrix.

A key is kept once. A pass that reads a cache brings the keys of earlier passes again, and only
those that are new are added; so what is kept grows with the tokens, not with tokens times steps.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard._bias import Bias, DenseBias
from regard._errors import ModelError
from regard._masks import Sizes
from regard._observation import Observation
from regard._problem import Problem, make_problem
from regard._score import Additive
from regard._watch.joined import Part, join_biases, join_masks
from regard._watch.layer import Layer
from regard._watch.statistics import Statistics
from regard._watch.wanted import Wanted
from regard._weights import Weights


@dataclass(eq=False)
class Record:
    """Gathers the calls of one attention.

    Attributes:
        number, name, heads, sequence, cross: as in `Layer`.
        wanted: what is gathered.
    """

    number: int
    name: str
    heads: tuple[int, ...]
    sequence: str
    cross: bool
    wanted: Wanted
    queries: range = range(0)
    keys: range = range(0)
    parts: list[Part] = field(default_factory=list)
    _query: list[Tensor] = field(default_factory=list)
    _key: list[Tensor] = field(default_factory=list)
    _options: dict[str, Any] = field(default_factory=dict)
    _last_keys: Tensor | None = None
    _layer: Layer | None = None

    def __post_init__(self) -> None:
        keeps = self.wanted.keeps
        exact = keeps and self.wanted.dtype is None
        self.statistics = Statistics(self.wanted.observe, alone=not keeps, exact=exact)

    def add(self, problem: Problem, seen: Observation, row: int, column: int) -> None:
        """One more call, whose first query and key stand at these positions.

        Raises:
            ModelError: the call does not go on where the last one ended, or the keys that both
                read are not the same.
        """
        columns = range(column, column + problem.S)
        if not self.statistics.calls:
            self.queries, self.keys = range(row, row), range(column, column)
        self._check(problem, row, columns)
        new = problem.S - (self.keys.stop - column)
        at = column - self.keys.start
        self.statistics.add(seen, at, problem)
        if self.wanted.keeps:
            self._keep(problem, max(new, 0))
            bias = _still(problem)
            self.parts.append(Part(problem.mask, bias, len(self.queries), at, problem.L, problem.S))
        self.queries = range(self.queries.start, row + problem.L)
        self.keys = range(self.keys.start, max(self.keys.stop, columns.stop))
        if not self.cross and problem.S:
            self._last_keys = problem.key[..., -1:, :].detach().clone()
        elif self._last_keys is None:
            self._last_keys = problem.key.detach()  # all, which no later call may change
        self._layer = None

    def _check(self, problem: Problem, row: int, columns: range) -> None:
        if row != self.queries.stop or not columns.start <= self.keys.stop:
            raise ModelError(
                f"watch: {self.name} goes on at position {row} after {self.queries.stop - 1}; a "
                "trace holds one run from left to right"
            )
        last = self._last_keys
        if last is None or not (shared := self.keys.stop - columns.start):
            return
        again = problem.key[..., max(shared - last.shape[-2], 0) : shared, :]
        same = torch.equal(again, last)
        if not (same or torch.allclose(again, last, rtol=0, atol=0, equal_nan=True)):
            raise ModelError(
                f"watch: the keys that {self.name} reads again are not those of the pass before; "
                "beam search, which moves the entries of the cache, and caches that round their "
                "keys cannot be followed"
            )

    def _keep(self, problem: Problem, new: int) -> None:
        if not self._options:
            sinks = None if problem.sinks is None else _as_it_is(problem.sinks)
            score = problem.score and Additive(problem.score.vector.detach().clone())
            self._options = {"scale": problem.scale, "softcap": problem.softcap, "sinks": sinks}
            self._options["score"] = score
        dtype = self.wanted.dtype
        for kept, x in ((self._query, problem.query), (self._key, problem.key)):
            if x is problem.key and new < problem.S:
                x = x[..., problem.S - new :, :]
            kept.append(_as_it_is(x) if dtype is None else x.detach().to(dtype))

    @property
    def nbytes(self) -> int:
        return self.statistics.nbytes + sum(x.nbytes for x in (*self._query, *self._key))

    @property
    def layer(self) -> Layer:
        """All calls as one matrix."""
        if self._layer is None:
            weights = None
            if self.wanted.keeps:
                whole = self._whole()
                self.statistics.complete(whole)
                # Rounded queries and keys have another lse.
                exact = self.wanted.dtype is None
                weights = Weights(whole, self.statistics.per_query("lse") if exact else None)
            self._layer = Layer(
                number=self.number,
                name=self.name,
                heads=self.heads,
                queries=self.queries,
                keys=self.keys,
                sequence=self.sequence,
                cross=self.cross,
                observation=self.statistics.joined(weights),
                kept=weights,
            )
        return self._layer

    def _whole(self) -> Problem:
        self._query, self._key = [_joined(self._query)], [_joined(self._key)]
        query, key = self._query[0], self._key[0]
        *batch, heads, L, _ = query.shape
        sizes = Sizes(tuple(batch), heads, L, key.shape[-2])
        if len(self.parts) == 1:
            mask, bias = self.parts[0].mask, self.parts[0].bias
        else:
            mask, bias = join_masks(self.parts, sizes), join_biases(self.parts, sizes)
        return make_problem(query, key, None, mask=mask, bias=bias, **self._options)


def _still(problem: Problem) -> Bias | None:
    """The bias as it is now, whatever becomes of the model's tensors."""
    if not isinstance(problem.bias, DenseBias):
        return problem.bias
    given = problem.bias.array if problem.bias.given is None else problem.bias.given
    return DenseBias(_as_it_is(given)).bind(problem.sizes)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _as_it_is(x: Tensor) -> Tensor:
    """The tensor, without its graph; a copy if it may be overwritten, or holds on to much more.

    What was written in place once (the buffers of a static cache, parameters) may be written
    again. Tensors of inference mode do not say whether they were.
    """
    overwritten = x.is_inference() or x._version > 0
    part = x.untyped_storage().nbytes() > 2 * x.nbytes
    return x.detach().clone() if overwritten or part else x.detach()
