"""What can be asked about the weights, and the answers.

All of it is gathered while the context is computed. Weights are meant before dropout; the shapes
have query heads; statistics are float32, or float64 for float64 input. A row that sees no key has
zero entropy, key -1 and weight 0, and is left out of every sum and mean.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from regard._arrays import Array
from regard._errors import OptionError, ShapeError

MAX_TOP = 64


class Peak(NamedTuple):
    """The greatest weight of each row and its key: (*batch, heads, L) each; ties to the first."""

    weight: Array
    key: Array


class Top(NamedTuple):
    """The greatest weights of each row, falling: (*batch, heads, L, k) each; ties by key."""

    keys: Array
    weights: Array


@dataclass(frozen=True, eq=False, repr=False)
class Observation:
    """One field for each statistic; None where it was not asked for.

    Attributes:
        lse: (*batch, heads, L), log of the sum of exp of the visible scores, the sink included.
        entropy: (*batch, heads, L), in nats, of the whole row, the sink included.
        peak: greatest weight and its key, (*batch, heads, L) each.
        top: keys and weights, (*batch, heads, L, k) each.
        received: (*batch, heads, S), weight per key summed over all or the last n queries.
        map: (*batch, heads, rows, columns), mean over a bin's queries of the weight on a bin's
            keys; bins as `numpy.array_split` cuts them.
        spans: (*batch, heads, n, m), the same for given runs of queries and keys.
        sink: (*batch, heads, L), weight on the learned sink.
    """

    lse: Array | None = None
    entropy: Array | None = None
    peak: Peak | None = None
    top: Top | None = None
    received: Array | None = None
    map: Array | None = None
    spans: Array | None = None
    sink: Array | None = None

    def __repr__(self) -> str:
        """The names and shapes of what was asked for; the numbers may be millions."""
        shapes = []
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                array = value[0] if isinstance(value, tuple) else value
                shapes.append(f"{field.name} {tuple(array.shape)}")
        return f"Observation({', '.join(shapes)})"

    def each(self, function: Any) -> "Observation":
        """The observation with function applied to every array."""
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, tuple):
                changed[name] = type(value)(*map(function, value))
            elif value is not None:
                changed[name] = function(value)
        return Observation(**changed)


@dataclass(frozen=True)
class Observe:
    """Which statistics to gather; see `Observation` for their shapes.

    Args:
        lse, entropy, peak, sink: True to gather.
        top: how many of the greatest weights, 1 to 64 and at most S.
        received: "all", or n for the last n queries.
        map: (rows, columns) of the pooled matrix, at most (L, S).
        spans: (query_spans, key_spans), each a sequence of (start, stop) or None for every
            position on its own. Spans may overlap and leave gaps.

    Raises:
        OptionError: a value outside its range; ShapeError: spans that are no (n, 2) integers.
    """

    lse: bool = False
    entropy: bool = False
    peak: bool = False
    top: int | None = None
    received: Literal["all"] | int | None = None
    map: tuple[int, int] | None = None
    spans: tuple[Any, Any] | None = None
    sink: bool = False

    def __post_init__(self) -> None:
        if self.top is not None and not (_is_count(self.top) and self.top <= MAX_TOP):
            raise OptionError(f"top: needs 1 to {MAX_TOP} keys, got {self.top!r}")
        if self.received not in (None, "all") and not _is_count(self.received):
            raise OptionError(
                f'received: needs "all" or a number of last queries, got {self.received!r}'
            )
        if self.map is not None and not (_is_pair(self.map) and all(map(_is_count, self.map))):
            raise OptionError(f"map: needs (rows, columns) of 1 or more, got {self.map!r}")
        if self.spans is not None:
            if not _is_pair(self.spans):
                raise ShapeError(f"spans: needs (query_spans, key_spans), got {self.spans!r}")
            query, key = (None if s is None else _spans(s) for s in self.spans)
            object.__setattr__(self, "spans", (query, key))

    def check(self, L: int, S: int) -> None:
        """Whether this can be asked of an L x S matrix.

        Raises:
            OptionError: top exceeds S, or map exceeds the matrix; ShapeError: a span leaves it.
        """
        if self.top is not None and self.top > S:
            raise OptionError(f"top: needs at most S = {S} keys, got {self.top}")
        if self.map is not None and (self.map[0] > L or self.map[1] > S):
            raise OptionError(f"map: needs at most (L, S) = {(L, S)} bins, got {self.map}")
        if self.spans is not None:
            for spans, size, side in zip(self.spans, (L, S), ("query", "key"), strict=True):
                if spans is not None and len(spans) and spans.max() > size:
                    raise ShapeError(
                        f"spans: a {side} span ends at {spans.max()}, past the {size} positions"
                    )

    @property
    def received_rows(self) -> int | None:
        """How many last queries `received` sums over; None for all."""
        return None if self.received is None or self.received == "all" else int(self.received)


NOTHING = Observe()


def bins(size: int, count: int) -> np.ndarray:
    """(count, 2) starts and stops of `numpy.array_split`'s pieces of range(size)."""
    small, longer = divmod(size, count)
    stops = np.cumsum(small + (np.arange(count) < longer))
    return np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)


def span_bounds(spans: np.ndarray | None, size: int) -> np.ndarray:
    """Spans as (n, 2); None as every position on its own."""
    return (
        bins(size, size)
        if spans is None and size
        else (np.zeros((0, 2), np.int64) if spans is None else spans)
    )


def _is_count(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and int(x) >= 1


def _is_pair(x: Any) -> bool:
    return isinstance(x, (tuple, list)) and len(x) == 2


def _spans(spans: Any) -> np.ndarray:
    try:
        array = np.asarray(spans)
    except ValueError:
        raise ShapeError(
            f"spans: needs integers (n, 2) of starts and stops, got {spans!r}"
        ) from None
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise ShapeError(
            f"spans: needs integers (n, 2) of starts and stops, got {array.dtype} {array.shape}"
        )
    if (array < 0).any() or (array[:, 0] > array[:, 1]).any():
        raise ShapeError("spans: needs 0 <= start <= stop in every span")
    return array.astype(np.int64)
