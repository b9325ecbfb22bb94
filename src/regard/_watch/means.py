"""Weights pooled over runs of rows and columns, and averaged over heads and layers, one layer at
a time."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from regard._arrays import float64
from regard._errors import LimitError, OptionError
from regard._observation import bins
from regard._watch.reading import SOME, Reading, Span, View
from regard._watch.sentences import sentences
from regard._weights import LIMIT

MEANS = (None, "heads", "groups", "layers", "all")


def averaged(views: Sequence[View], arrays: Iterable[np.ndarray], mean: str | None) -> np.ndarray:
    """One array (heads, ...) of each view as (layers, heads, ...), or the mean that was asked for.

    Every head counts alike.

    Raises:
        OptionError: no such mean, or one that layers with other heads do not have.
    """
    check_mean(mean)
    counts = [len(view.heads) for view in views]
    by_head = mean in (None, "layers")
    groups = [int(view.group_of.max()) + 1 for view in views] if mean == "groups" else counts
    if (by_head or mean == "groups") and len(set(groups)) > 1:
        raise OptionError(
            f"mean: layers have {sorted(set(groups))} heads or groups, which make no one array; "
            'name layers=..., or mean="heads"'
        )
    found: list[np.ndarray] = []
    total: Any = 0.0
    for view, x in zip(views, arrays, strict=True):
        if mean == "groups":
            of = view.group_of
            found.append(np.stack([x[of == g].mean(axis=0) for g in range(of.max() + 1)]))
        elif mean == "heads":
            found.append(x.mean(axis=0))
        elif mean is None:
            found.append(x)
        else:
            total = total + (x if mean == "layers" else x.sum(axis=0))
    if mean in ("layers", "all"):
        whole: np.ndarray = total / (len(views) if mean == "layers" else sum(counts))
        return whole
    return np.stack(found)


def check_mean(mean: str | None) -> None:
    """Raises:
    OptionError: no such mean.
    """
    if mean not in MEANS:
        named = ", ".join(f'"{name}"' for name in MEANS[1:])
        raise OptionError(f"mean: got {mean!r}; needs {named} or None")


def summed(x: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """(..., L) summed over spans (n, 2): (..., n)."""
    sums = np.concatenate([np.zeros((*x.shape[:-1], 1)), x.cumsum(axis=-1)], axis=-1)
    difference: np.ndarray = sums[..., spans[:, 1]] - sums[..., spans[:, 0]]
    return difference


def spans_of(reading: Reading, which: Any) -> np.ndarray:
    """(n, 2) tokens of what `Trace.between` names.

    Raises:
        OptionError: it names nothing; TextError: a word that is not there.
    """
    count = reading.count
    if isinstance(which, str) and which in ("tokens", "words", "sentences"):
        if which == "tokens":
            return bins(count, count)
        found: Any = reading.words if which == "words" else sentences(reading.words)
        return np.array([(x.start, x.stop) for x in found])
    if isinstance(which, int) and not isinstance(which, bool) and 0 < which <= count:
        return bins(count, which)
    if isinstance(which, (str, int)):
        raise OptionError(
            f'between: got {which!r}; needs "tokens", "words", "sentences", a number of bins up '
            f"to {count}, or a list of words and spans"
        )
    return np.array([_span(reading, x) for x in which], np.int64).reshape(-1, 2)


def _span(reading: Reading, x: Any) -> Span:
    if isinstance(x, str):
        tokens = reading.place(x).tokens
        return tokens.start, tokens.stop
    start, stop = (x.start, x.stop) if hasattr(x, "start") else x
    if not 0 <= start < stop <= reading.count:
        raise OptionError(
            f"between: got the span ({start}, {stop}); needs 0 <= start < stop <= {reading.count}"
        )
    return int(start), int(stop)


def between(views: Sequence[View], rows: Any, columns: Any, mean: str | None) -> np.ndarray:
    """The body of `Trace.between`.

    Raises:
        LimitError: more than `LIMIT` numbers would come of it.
    """
    check_mean(mean)
    first = views[0]
    queries, keys = spans_of(first.queries, rows), spans_of(first.keys, columns)
    size = len(queries) * len(keys)
    times = {None: sum(len(v.heads) for v in views), "heads": len(views), "all": 1}
    count = size * times.get(mean, len(first.heads) * (len(views) if mean == "groups" else 1))
    if count > LIMIT:
        raise LimitError(
            f"between: {count:,} numbers were asked for, and at most {LIMIT:,} are given at once; "
            'name fewer layers and heads, mean="all", or longer spans'
        )
    return averaged(views, (_pooled(view, queries, keys) for view in views), mean)


def _pooled(view: View, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(heads, n, m), as many heads at once as have room."""
    step = max(SOME // max(len(queries) * len(keys), 1), 1)
    found = [
        float64(part[head : head + step].spans(queries, keys + view.offset))
        for part in view.parts
        for head in range(0, part.shape[0], step)
    ]
    return np.concatenate(found)
