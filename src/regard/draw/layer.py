"""One layer's attention over a text, and which keys its mask and bias let a query see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from regard._arrays import float64
from regard._errors import ModelError
from regard._masks import Grid
from regard._observation import Observation, Observe
from regard._problem import Problem
from regard._watch.at import SMALLEST
from regard._watch.reading import learned
from regard._weights import Weights

BLOCK = 256  # rows of a mask evaluated at once


@dataclass(frozen=True, eq=False)
class Sight:
    """Which keys the queries of a layer may see.

    Attributes:
        start, stop: (L,), the first visible key of any head, and one past the last.
        count: (L,), how many keys any head sees.
        alike: whether all heads see the same keys.
    """

    start: np.ndarray
    stop: np.ndarray
    count: np.ndarray
    alike: bool

    @property
    def unbroken(self) -> bool:
        """Whether every query sees one run of keys, the same in all heads."""
        return self.alike and bool((self.count == self.stop - self.start).all())


@dataclass(frozen=True, eq=False)
class Layer:
    """The attention of one layer over the text.

    Attributes:
        number: as the model counts, from 0.
        heads: the numbers of the heads that are held.
        weights: (heads, L, L), lazy.
        observation: what was gathered while the model ran, `received` from all queries; None where
            nothing was.
    """

    number: int
    heads: tuple[int, ...]
    weights: Weights
    observation: Observation | None = None

    def tile(self, rows: slice, columns: slice) -> np.ndarray:
        """(heads, rows, columns) in float64."""
        found = float64(self.weights[:, rows, columns])
        self.check(found)
        return found

    def check(self, *numbers: np.ndarray) -> None:
        """Whether there are weights to show.

        Args:
            numbers: that follow from them.

        Raises:
            ModelError: some weight, or number, is NaN.
        """
        if self._overflown or not all(np.isfinite(x).all() for x in numbers):
            raise ModelError(
                f"model: weights of layer {self.number} are NaN, as scores there are NaN or "
                "infinite; needs queries and keys that do not overflow (float16 ends at 65,504)"
            )

    @cached_property  # every tile asks
    def _overflown(self) -> bool:
        lse = float64(self.weights.lse())
        return bool((np.isnan(lse) | (lse == np.inf)).any())

    def seen(self, wanted: Observe) -> Observation:
        """Statistics in one pass, unless they were gathered while the model ran."""
        known: Any = self.observation
        asked = [name for name, value in vars(wanted).items() if value]
        if known is None or any(getattr(known, name) is None for name in asked):
            return self.weights.observe(wanted)
        as_wide = wanted.map is None or tuple(known.map.shape[-2:]) == wanted.map
        return cast(Observation, known) if as_wide else self.weights.observe(wanted)

    @cached_property
    def learned(self) -> np.ndarray:
        """(heads, L), the weight on the learned sink."""
        return learned(self.weights.problem, float64(self.weights.lse()))

    @cached_property
    def sighted(self) -> np.ndarray:
        """(heads, L), True for queries that see a key."""
        problem = self.weights.problem
        keys = self.weights if problem.sinks is None else Weights(replace(problem, sinks=None))
        return np.asarray(np.isfinite(float64(keys.lse())))

    def information(self, aside: Sequence[int]) -> float:
        """What the weights tell, in bits, without those on some keys: see `Look.information`."""
        every = slice(0, self.weights.shape[-1], 1)
        columns = [self.tile(every, slice(token, token + 1))[..., 0] for token in aside]
        gone = np.stack([*columns, self.learned])
        mass = 1.0 - gone.sum(axis=0)
        logs = np.log(np.where(gone > 0, gone, 1.0))
        rest = np.maximum(mass, SMALLEST)
        entropy = (float64(self.weights.entropy()) + (gone * logs).sum(axis=0)) / rest
        problem = self.weights.problem
        seen = [visible(problem, every, slice(t, t + 1, 1)).any(axis=0) for t in aside]
        remain = self.sight.count - np.concatenate(seen, axis=-1).sum(axis=-1)
        told = mass * (np.log(np.maximum(remain, 1)) - entropy - np.log(rest))
        told = np.where((mass > SMALLEST) & (remain > 0), told, 0.0)
        return float(told.mean() / np.log(2.0))

    @cached_property
    def sight(self) -> Sight:
        problem = self.weights.problem
        start, stop, count = (np.zeros(problem.L, np.int64) for _ in range(3))
        alike = True
        for first in range(0, problem.L, BLOCK):
            rows = slice(first, min(first + BLOCK, problem.L), 1)
            by_head = visible(problem, rows, slice(0, problem.S, 1))
            alike = alike and bool((by_head == by_head[:1]).all())
            seen = np.logical_or.reduce(by_head, axis=0)
            count[rows] = seen.sum(axis=-1)
            some = count[rows] > 0
            start[rows] = np.where(some, seen.argmax(axis=-1), 0)
            stop[rows] = np.where(some, problem.S - seen[:, ::-1].argmax(axis=-1), 0)
        return Sight(start, stop, count, alike)


def visible(problem: Problem, rows: slice, columns: slice) -> np.ndarray:
    """(heads or 1, rows, columns), True where mask and bias let a query see a key.

    Rows count from the first query held; slices need a start, a stop and a step.
    """
    at = Grid(slice(rows.start + problem.row, rows.stop + problem.row, 1), columns, float64)
    shape = (1, rows.stop - rows.start, columns.stop - columns.start)
    seen = np.ones(shape, bool)
    if problem.mask is not None:
        seen = seen & problem.mask.visible(at)
    if problem.bias is not None:
        seen = seen & (problem.bias.added(at) != -np.inf)
    return seen
