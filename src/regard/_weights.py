"""The L x S matrix of weights, never stored: any part of it, and what can be said of the whole."""

import math
import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from regard._arrays import Array, float64, is_torch, restore
from regard._backends import pick
from regard._backends.reference import scores
from regard._errors import DtypeError, LimitError, OptionError, ShapeError
from regard._observation import Observation, Observe, Peak, Top, bins
from regard._problem import Problem, make_problem

LIMIT = 2**26  # numbers given out at once: 256 MB in float32
LSE = Observe(lse=True)

# Rows whose log-sum-exp is not known yet are asked for in runs. A run goes on over this many rows
# that nobody asked for: a kernel reads the keys once for a block of rows, however few it needs.
GAP = 32


def weights(
    query: Any,
    key: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    score: Any = None,
    backend: str | None = None,
) -> "Weights":
    """The weights of `regard.attention` with these arguments, as a matrix that is never stored.

    Returns:
        `Weights` of shape (*batch, heads, L, S), or (L, S) for two-dimensional arrays.

    Raises:
        ShapeError, DtypeError, OptionError, BackendError: as `regard.attention`; DtypeError also
            for tensors that require a gradient, which weights do not carry.
    """
    problem = make_problem(
        query,
        key,
        None,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        score=score,
    )
    if problem.needs_grad:
        raise DtypeError(
            "weights: got a tensor that requires a gradient, and weights carry none; detach it, "
            "or ask within torch.no_grad()"
        )
    pick(problem, LSE, backend)  # an unknown or unable backend is told here, not at first use
    return Weights(problem, like=query, one_head=query.ndim == 2, backend=backend)


class Weights:
    """The weights of attention, (*batch, heads, L, S), computed when and where they are asked for.

    Indices work as NumPy's ints, slices and `...`. A selection of leading dimensions stays a
    `Weights`; as soon as one of the last two is indexed, the answer is an array, exact for the
    queries and keys held: exp(score - lse) in float64, given as float32 (float64 for float64
    input). Arrays come back as the kind that the query was. Nothing here carries a gradient.

    Args:
        problem: what to attend with; its value is not read.
        lse: (*batch, heads, L), if it is known already; weights are then as exact as its rounding
            (in float32 about 6e-8 x |lse|, relative). Otherwise the rows that are asked for get
            theirs computed once, in float64.
    """

    def __init__(
        self,
        problem: Problem,
        lse: Array | None = None,
        *,
        like: Any = None,
        one_head: bool = False,
        backend: str | None = None,
    ) -> None:
        self.problem = replace(problem, value=None, dropout=0.0)
        self._like = problem.query if like is None else like
        self._one_head = one_head  # the heads' axis, of size 1, is not shown
        self._backend = backend
        rows = (*problem.batch, problem.heads, problem.L)
        if lse is not None and tuple(lse.shape) != rows:
            raise ShapeError(f"lse: got shape {tuple(lse.shape)}; needs {rows}")
        # Parts of this matrix share these arrays: what one of them computes, all know.
        self._lse = np.zeros(rows) if lse is None else float64(lse)
        self._known = np.full(rows, lse is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, heads, L, S), without the axes that an int has selected from."""
        problem = self.problem
        heads = () if self._one_head else (problem.heads,)
        return (*problem.batch, *heads, problem.L, problem.S)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"Weights(shape={self.shape}, dtype={self._dtype.__name__})"

    def __getitem__(self, index: Any) -> Any:
        """A `Weights` of some leading entries, or an array of some rows and keys.

        Raises:
            IndexError: an index out of range, or more indices than dimensions.
            DtypeError: an index that is no int, slice or `...`.
            OptionError: a leading slice whose step is negative.
            LimitError: an array of more than `LIMIT` numbers.
        """
        *leading, rows, keys = _per_axis(index, self.ndim)
        part = self._select(leading)
        if rows is None and keys is None:
            return part
        everything = slice(None)
        return part._tile(
            everything if rows is None else rows, everything if keys is None else keys
        )

    def row(self, i: int) -> Any:
        """The weights of query i: (*batch, heads, S)."""
        return self[..., i, :]

    def pooled(
        self,
        rows: int,
        columns: int,
        *,
        window: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> Any:
        """The matrix as rows x columns bins: mean over a bin's queries of the weight on its keys.

        Args:
            rows, columns: how many bins, cut as `numpy.array_split` cuts.
            window: ((i0, i1), (j0, j1)), queries and keys to pool instead of all of them. Weights
                are still those of the whole row.

        Returns:
            (*batch, heads, rows, columns). Rows that see no key are left out of a mean.

        Raises:
            OptionError: more bins than queries or keys, or a window outside the matrix.
        """
        grid = Observe(map=(rows, columns))
        if window is None:
            return self._observe(grid).map
        (i0, i1), (j0, j1) = self._window(window)
        grid.check(i1 - i0, j1 - j0)
        spans = (bins(i1 - i0, rows), bins(j1 - j0, columns) + j0)
        return self._observe(Observe(spans=spans), self.problem.rows(i0, i1)).spans

    def received(self, last: int | None = None) -> Any:
        """(*batch, heads, S): weight per key, summed over all queries or the last so many."""
        return self._observe(Observe(received="all" if last is None else last)).received

    def entropy(self) -> Any:
        """(*batch, heads, L): entropy of each row in nats, the sink included."""
        return self._observe(Observe(entropy=True)).entropy

    def peak(self) -> Peak:
        """The greatest weight of each row and its key, (*batch, heads, L) each."""
        peak: Peak = self._observe(Observe(peak=True)).peak  # type: ignore[assignment]
        return peak

    def top(self, k: int) -> Top:
        """The k greatest weights of each row and their keys, (*batch, heads, L, k) each.

        Raises:
            OptionError: k is not 1 to 64, or exceeds S.
        """
        top: Top = self._observe(Observe(top=k)).top  # type: ignore[assignment]
        return top

    def spans(self, queries: Any, keys: Any) -> Any:
        """(*batch, heads, n, m): mean over each run of queries of the weight on each run of keys.

        Args:
            queries, keys: (n, 2) and (m, 2) starts and stops, which may overlap and leave gaps;
                None for every position on its own.

        Raises:
            ShapeError: no such runs.
        """
        return self._observe(Observe(spans=(queries, keys))).spans

    def lse(self) -> Any:
        """(*batch, heads, L): log of the sum of exp of the visible scores, the sink included."""
        return self._give(self._lse_of(range(self.problem.L)).astype(self._dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as long as that is at most `LIMIT` numbers.

        Raises:
            LimitError: it is more.
        """
        if copy is False:
            raise ValueError("weights: are computed when asked for, so there is only a copy")
        whole = self[..., :, :]
        array: np.ndarray = whole.cpu().numpy() if is_torch(whole) else np.asarray(whole)
        return array if dtype is None else array.astype(dtype)

    @property
    def _dtype(self) -> type[np.floating[Any]]:
        return np.float64 if self.problem.dtype == "float64" else np.float32

    def _select(self, leading: list[int | slice | None]) -> "Weights":
        """What the indices of the dimensions before the last two leave."""
        at = tuple(map(_leading, leading, self.shape))
        batch, head = (at, slice(None)) if self._one_head else (at[:-1], at[-1])
        heads = slice(head, head + 1) if isinstance(head, int) else head
        part = Weights.__new__(Weights)
        part.problem = self.problem.select(batch, heads)
        part._one_head = self._one_head or isinstance(head, int)
        part._like, part._backend = self._like, self._backend
        part._lse, part._known = self._lse[(*batch, heads)], self._known[(*batch, heads)]
        return part

    def _tile(self, rows: Any, keys: Any) -> Any:
        """Some rows and keys, each given as an int or a slice, as an array."""
        problem = self.problem
        chosen = [_chosen(rows, problem.L, "row"), _chosen(keys, problem.S, "key")]
        count = math.prod((*problem.batch, problem.heads, *map(len, chosen)))
        if count > LIMIT:
            raise LimitError(
                f"weights: {count:,} numbers of shape {self.shape} were asked for, and at most "
                f"{LIMIT:,} are given at once; ask for a part (weights[..., 1000:1010, :]) or a "
                "summary: pooled, received, top, peak, entropy"
            )
        rising = [r if r.step > 0 else r[::-1] for r in chosen]
        i, j = (slice(r.start, r.stop, r.step) for r in rising)
        with np.errstate(all="ignore"):
            score = scores(problem, i, j)
            lse = self._lse_of(rising[0])[..., None]
            tile = np.where(score == -np.inf, 0.0, np.exp(score - lse)).astype(self._dtype)
        tile = tile[(..., *map(_turned, (rows, keys)))]
        return self._give(np.ascontiguousarray(tile))

    def _lse_of(self, rows: range) -> np.ndarray:
        """(*batch, heads, len(rows)), computed where it is not known yet."""
        wanted = np.arange(rows.start, rows.stop, rows.step)
        known = np.asarray(self._known.all(axis=tuple(range(self._known.ndim - 1))))
        if unknown := list(_runs(wanted[~known[wanted]])):
            # In double: at great scores a rounded lse would change every weight of its row.
            exact = replace(self.problem, key=_double(self.problem.key))
        for start, stop in unknown:
            part = exact.rows(start, stop)
            part = replace(part, query=_double(part.query))
            self._lse[..., start:stop] = float64(self._seen(part, LSE).lse)
            self._known[..., start:stop] = True
        return self._lse[..., wanted]

    def observe(self, observe: Observe) -> Observation:
        """Several statistics in one pass, as `regard.attention` gives them.

        Raises:
            OptionError, ShapeError: what is asked for goes beyond the matrix.
        """
        return self._observe(observe)

    def _observe(self, observe: Observe, problem: Problem | None = None) -> Observation:
        return self._seen(problem or self.problem, observe).each(self._give)

    def _seen(self, problem: Problem, observe: Observe) -> Observation:
        observe.check(problem.L, problem.S)
        backend, _ = pick(problem, observe, self._backend)
        return backend.run(problem, observe)[1]

    def _give(self, x: Array) -> Any:
        """A result (*batch, heads, ...) as the user is to see it."""
        if self._one_head:
            x = x[(*[slice(None)] * len(self.problem.batch), 0)]
        return restore(x, self._like)

    def _window(self, window: Any) -> Any:
        try:
            (i0, i1), (j0, j1) = (map(operator.index, side) for side in window)
        except (TypeError, ValueError):
            raise OptionError(f"window: needs ((i0, i1), (j0, j1)), got {window!r}") from None
        L, S = self.problem.L, self.problem.S
        if not (0 <= i0 < i1 <= L and 0 <= j0 < j1 <= S):
            raise OptionError(
                f"window: needs 0 <= i0 < i1 <= L = {L} and 0 <= j0 < j1 <= S = {S}, got {window!r}"
            )
        return (i0, i1), (j0, j1)


def _double(x: Array) -> Array:
    return x.double() if is_torch(x) else x.astype(np.float64)


def _per_axis(index: Any, ndim: int) -> list[int | slice | None]:
    """One int or slice for each dimension; None where nothing was said about it."""
    given = list(index) if isinstance(index, tuple) else [index]
    dots = [n for n, x in enumerate(given) if x is Ellipsis]
    if len(dots) > 1:
        raise IndexError("weights: needs at most one `...` in an index")
    count = len(given) - len(dots)
    if count > ndim:
        raise IndexError(f"weights: got {count} indices for {ndim} dimensions")
    at = dots[0] if dots else len(given)
    unsaid: list[int | slice | None] = [None] * (ndim - count)
    return [*map(_index, given[:at]), *unsaid, *map(_index, given[at + 1 :])]


def _index(x: Any) -> int | slice:
    try:
        if isinstance(x, slice):
            x.indices(0)  # tells whether its parts are ints
            return x
        if not isinstance(x, (bool, np.bool_)):
            return operator.index(x)
    except (TypeError, ValueError):
        pass
    got = repr(x) if isinstance(x, slice) else type(x).__name__
    raise DtypeError(f"weights: got the index {got}; needs ints, slices of ints, or `...`")


def _leading(index: int | slice | None, size: int) -> int | slice:
    if index is None:
        return slice(None)
    if isinstance(index, slice):
        if index.step is not None and index.step < 0:
            raise OptionError("weights: a slice of batch or heads needs a positive step")
        return index
    return _chosen(index, size, "leading index")[0]


def _chosen(index: int | slice, size: int, name: str) -> range:
    """The positions that an int or a slice selects."""
    if isinstance(index, slice):
        return range(size)[index]
    if not -size <= index < size:
        raise IndexError(f"weights: {name} {index} is out of range for size {size}")
    return range(size)[index % size :][:1]


def _turned(index: int | slice) -> int | slice:
    """What brings a rising selection, all axes kept, to the order and axes that were asked for."""
    if isinstance(index, int):
        return 0
    return slice(None, None, -1 if index.step is not None and index.step < 0 else 1)


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Rising rows as (start, stop) of runs that reach over small gaps."""
    if len(rows):
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > GAP) + 1):
            yield int(run[0]), int(run[-1]) + 1
