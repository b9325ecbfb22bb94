"""The statistics of one attention, gathered over the forward passes of a run."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard._arrays import tensor
from regard._errors import ModelError
from regard._observation import Observation, Observe, Peak, Top
from regard._problem import Problem
from regard._weights import Weights

PER_QUERY = ("lse", "entropy", "peak", "top", "sink")
OF_THE_WHOLE = ("map", "spans")  # a matrix that grows has no bins or spans before its end


class Recent(NamedTuple):
    """A call whose last queries count among the last of the run."""

    L: int
    column: int
    received: Any
    weights: Weights | None  # of a call of several queries, some of which may cease to count


@dataclass
class Statistics:
    """Adds one call of an attention to the next.

    Attributes:
        observe: what is wanted of the whole.
        alone: whether no queries and keys are kept, from which the rest could be told later.
    """

    observe: Observe
    alone: bool

    def __post_init__(self) -> None:
        self.calls: list[Observation] = []
        self.received: Tensor | None = None
        self.recent: list[Recent] = []
        self.columns = 0

    def wanted(self) -> Observe:
        """What the next call observes.

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
        received = self.observe.received if self.alone or self.observe.received == "all" else None
        return replace(self.observe, map=None, spans=None, received=received)

    def add(self, seen: Observation, column: int, problem: Problem) -> None:
        """One more call; its first key is number `column` of the whole."""
        self.columns = max(self.columns, column + problem.S)
        if self.observe.received == "all":
            self.received = _placed(self.received, seen.received, column, self.columns)
            seen = replace(seen, received=None)
        elif self.observe.received is not None and self.alone:
            weights = Weights(problem, seen.lse) if problem.L > 1 else None
            self.recent.append(Recent(problem.L, column, seen.received, weights))
            self._forget(int(self.observe.received))
            seen = replace(seen, received=None)
        self.calls.append(_moved(seen, column))

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
        held = [*self.calls, Observation(received=self.received)]
        return sum(x.nbytes for seen in held for x in _arrays(seen))

    def joined(self, weights: Weights | None) -> Observation:
        """Those of the whole; what only the whole has is told by its weights."""
        observe, first = self.observe, self.calls[0]
        fields: dict[str, Any] = {}
        for name in PER_QUERY:
            if getattr(first, name) is not None:
                fields[name] = _rows([getattr(seen, name) for seen in self.calls])
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
            only: Any = self.calls[0].received
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


def _placed(total: Tensor | None, received: Any, column: int, columns: int) -> Tensor:
    """The sum, over as many keys as there are by now."""
    if total is None and column == 0 and received.shape[-1] == columns:
        first: Tensor = received
        return first
    if total is None or total.shape[-1] < columns:
        grown = received.new_zeros((*received.shape[:-1], columns))
        if total is not None:
            grown[..., : total.shape[-1]] = total
        total = grown
    total[..., column : column + received.shape[-1]] += received
    return total


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
