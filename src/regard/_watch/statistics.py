"""The statistics of one attention, gathered over the forward passes of a run.

A call that reads many queries is observed while it is computed. What a decoding step shows is told
later from the queries and keys that are kept, for many steps in one pass: to prepare for results
takes longer than to compute one row.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard._arrays import restore, tensor
from regard._backends import pick
from regard._errors import ModelError
from regard._observation import NOTHING, Observation, Observe, Peak, Top
from regard._problem import Problem
from regard._weights import Weights

PER_QUERY = ("lse", "entropy", "peak", "top", "sink")
OF_THE_WHOLE = ("map", "spans")  # a matrix that grows has no bins or spans before its end
FEW = 16  # queries of a call that are observed later: at most


class Recent(NamedTuple):
    """A call whose last queries count among the last of the run."""

    L: int
    column: int
    received: Any
    weights: Weights | None  # of a call of several queries, some of which may cease to count


@dataclass
class Rows:
    """Queries that follow one another, and what they show; None until it is asked for."""

    start: int
    stop: int
    seen: Observation | None


@dataclass
class Statistics:
    """Adds one call of an attention to the next.

    Attributes:
        observe: what is wanted of the whole.
        alone: whether no queries and keys are kept, from which the rest could be told later.
        exact: whether they are kept as they are, so that all of it can be told later.
    """

    observe: Observe
    alone: bool
    exact: bool

    def __post_init__(self) -> None:
        self.calls: list[Rows] = []
        self.received: Tensor | None = None
        self.recent: list[Recent] = []
        self.columns = 0
        received = self.observe.received if self.alone or self.observe.received == "all" else None
        self._after_the_first = replace(self.observe, map=None, spans=None, received=received)

    def wanted(self, L: int) -> Observe:
        """What the next call, of L queries, observes.

        Raises:
            ModelError: a map or spans over several calls, of which nothing but statistics is kept.
        """
        if not self.calls:
            return self.observe
        for name in OF_THE_WHOLE if self.alone else ():
            if getattr(self.observe, name) is not None:
                raise ModelError(
                    f"watch: {name} cannot be gathered over several forward passes, as in "
                    "generation, before it is known how many tokens there will be; needs "
                    'keep="weights"'
                )
        return NOTHING if self._is_left(L) else self._after_the_first

    def _is_left(self, L: int) -> bool:
        """Whether a call of L queries is left for later."""
        return self.exact and L <= FEW and bool(self.calls)

    def add(self, seen: Observation, column: int, problem: Problem) -> None:
        """One more call; its first key is number `column` of the whole."""
        self.columns = max(self.columns, column + problem.S)
        start = self.calls[-1].stop if self.calls else 0
        if self._is_left(problem.L):
            if self.calls[-1].seen is not None:
                self.calls.append(Rows(start, start, None))
            self.calls[-1].stop += problem.L
            return
        if self.observe.received == "all":
            self.received = _placed(self.received, seen.received, column, self.columns)
            seen = replace(seen, received=None)
        elif self.observe.received is not None and self.alone:
            weights = Weights(problem, seen.lse) if problem.L > 1 else None
            self.recent.append(Recent(problem.L, column, seen.received, weights))
            self._forget(int(self.observe.received))
            seen = replace(seen, received=None)
        self.calls.append(Rows(start, start + problem.L, _moved(seen, column)))

    def _forget(self, tail: int) -> None:
        """Lets go of calls none of whose queries is among the last of the run."""
        later = 0
        for at in reversed(range(len(self.recent))):
            if later >= tail:
                del self.recent[: at + 1]
                return
            later += self.recent[at].L

    @property
    def nbytes(self) -> int:
        held = [*(rows.seen for rows in self.calls), Observation(received=self.received)]
        return sum(x.nbytes for seen in held if seen is not None for x in _arrays(seen))

    def complete(self, whole: Problem) -> None:
        """Gathers what was left for later, from all queries and keys so far."""
        for rows in self.calls:
            if rows.seen is None:
                problem = whole.rows(rows.start, rows.stop)
                seen = observed(problem, self._after_the_first)[1]
                if seen.received is not None:
                    self.received = _placed(self.received, seen.received, 0, self.columns)
                rows.seen = replace(seen, received=None)

    def per_query(self, name: str) -> Any:
        """One of `PER_QUERY`, of all queries; None where it was not asked for."""
        found = [getattr(rows.seen, name) for rows in self.calls]
        return None if found[0] is None else _rows(found)

    def joined(self, weights: Weights | None) -> Observation:
        """Those of the whole; what only the whole has is told by its weights."""
        observe, first = self.observe, self.calls[0].seen
        assert first is not None
        fields: dict[str, Any] = {name: self.per_query(name) for name in PER_QUERY}
        if observe.received == "all":
            fields["received"] = self.received
        elif observe.received is not None:
            fields["received"] = self._last(int(observe.received), weights)
        if len(self.calls) == 1:
            return replace(first, **fields)
        if weights is not None and observe.map is not None:
            fields["map"] = weights.pooled(*observe.map)
        if weights is not None and observe.spans is not None:
            fields["spans"] = weights.spans(*observe.spans)
        return Observation(**fields)

    def _last(self, tail: int, weights: Weights | None) -> Any:
        """Mass per key from the last queries of the run."""
        if weights is not None:
            only: Any = self.calls[0].seen and self.calls[0].seen.received
            return only if len(self.calls) == 1 else weights.received(last=tail)
        total: Tensor | None = None
        for call in reversed(self.recent):
            counting = min(tail, call.L)
            received = call.received
            if counting < call.L and call is not self.recent[-1] and call.weights is not None:
                received = call.weights.received(last=counting)
            total = _placed(total, received, call.column, self.columns)
            tail -= counting
        assert total is not None
        return total


def observed(problem: Problem, observe: Observe) -> tuple[Any, Observation]:
    """The context, None where there is no value, and the observation as torch tensors."""
    observe.check(problem.L, problem.S)
    context, seen = pick(problem, observe)[0].run(problem, observe)
    context = None if context is None else restore(context, problem.query)
    return context, seen.each(lambda x: restore(x, problem.query).detach())


def _placed(total: Tensor | None, received: Any, column: int, columns: int) -> Tensor:
    """The sum, over as many keys as there are by now: a new array, as others may hold the old."""
    grown: Tensor = received.new_zeros((*received.shape[:-1], columns))
    if total is not None:
        grown[..., : total.shape[-1]] = total
    grown[..., column : column + received.shape[-1]] += received
    return grown


def _moved(seen: Observation, column: int) -> Observation:
    """The keys that are named, as numbers of the whole."""

    def moved(keys: Any) -> Any:
        return torch.where(tensor(keys) < 0, keys, keys + column) if column else keys

    peak, top = seen.peak, seen.top
    peak = peak and Peak(peak.weight, moved(peak.key))
    top = top and Top(moved(top.keys), top.weights)
    return replace(seen, peak=peak, top=top)


def _rows(found: list[Any]) -> Any:
    if len(found) == 1:
        return found[0]
    if isinstance(found[0], Peak):
        return Peak(*(torch.cat(part, -1) for part in zip(*found, strict=True)))
    if isinstance(found[0], Top):
        return Top(*(torch.cat(part, -2) for part in zip(*found, strict=True)))
    return torch.cat(found, -1)


def _arrays(seen: Observation) -> list[Any]:
    arrays: list[Any] = []
    seen.each(arrays.append)
    return arrays
