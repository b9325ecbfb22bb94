"""What hypothesis draws: attentions of every shape, layout, mask, bias and observation."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import regard

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
LAYOUTS = ("contiguous", "heads inside", "transposed", "reversed", "gaps", "one row", "one batch")

# Small sizes find faults in logic; the others stand on both sides of what a vector, a strip or a
# block of a kernel may hold.
SMALL = st.integers(0, 12)
SIZES = st.one_of(SMALL, SMALL, st.sampled_from([16, 17, 31, 33, 64, 65, 100, 129]))
KEY_SIZES = st.one_of(SIZES, st.sampled_from([255, 257, 513]))
DIMENSIONS = st.one_of(st.integers(0, 9), st.sampled_from([16, 31, 32, 64, 65]))


@dataclass
class Case:
    """One call of `attention`."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    options: dict[str, Any]
    observe: regard.Observe

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.query, self.key, self.value

    def exact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same numbers in float64."""
        query, key, value = (x.astype(np.float64) for x in self.arrays)
        return query, key, value

    def __repr__(self) -> str:
        arrays = ", ".join(f"{x.dtype}{x.shape}/{x.strides}" for x in self.arrays)
        return f"Case({arrays}, {self.options}, {self.observe})"


@st.composite
def cases(draw: Any, dtypes: tuple[str, ...] = tuple(DTYPES), sizes: Any = SIZES) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,), (2, 2), (0,)]))
    kv_heads, group = draw(st.sampled_from([1, 1, 2, 3, 0])), draw(st.sampled_from([1, 1, 2, 3]))
    heads = kv_heads * group
    L, S = draw(sizes), draw(KEY_SIZES if sizes is SIZES else sizes)
    d_k, d_v = draw(DIMENSIONS), draw(DIMENSIONS)
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    shapes = ((heads, L, d_k), (kv_heads, S, d_k), (kv_heads, S, d_v))
    # The query has all of the batch: what it meets may be broadcast to it.
    query, key, value = (
        laid_out(
            rng.normal(size=(*batch, *shape)).astype(dtype),
            draw(st.sampled_from(LAYOUTS if n else LAYOUTS[:-1])),
        )
        for n, shape in enumerate(shapes)
    )
    full = (*batch, heads, L, S)
    options = {
        "mask": draw(st.one_of(st.none(), masks(full))),
        "bias": draw(biases(full)),
        "scale": draw(st.one_of(st.none(), st.floats(-1.5, 1.5))),
        "softcap": draw(st.one_of(st.none(), st.floats(0.5, 30))),
        "sinks": draw(st.sampled_from([None, rng.normal(size=heads).astype(np.float32)])),
    }
    return Case(query, key, value, options, draw(observes(L, S)))


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """An array of x's shape (and, but for shared memory, its numbers) that lies in memory so."""
    if layout == "heads inside":
        return np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3)
    if layout == "transposed":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "reversed":
        return np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]
    if layout == "gaps":
        roomy = np.full((*x.shape[:-2], 2 * x.shape[-2], 3 * x.shape[-1]), np.nan, x.dtype)
        view = roomy[..., ::2, ::3]
        view[...] = x
        return view
    if layout == "one row" and x.shape[-2]:
        return np.broadcast_to(x[..., :1, :], x.shape)
    if layout == "one batch" and x.ndim > 3 and x.shape[0]:
        return x[:1]
    return x


def offsets(batch: tuple[int, ...], S: int) -> st.SearchStrategy[Any]:
    integer = st.integers(-S - 2, S + 2)
    return st.one_of(integer, st.just("end"), per_batch(batch, -S - 2, S + 2))


@st.composite
def per_batch(draw: Any, batch: tuple[int, ...], low: int, high: int) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(low, high + 1, batch)


@st.composite
def booleans(draw: Any, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))


@st.composite
def broadcastable(draw: Any, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to full: leading dimensions left out, others 1."""
    kept = full[draw(st.integers(0, len(full))) :]
    return tuple(draw(st.sampled_from([n, n, 1])) for n in kept)


def masks(full: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Any mask, and any composition of a few, for a matrix (*batch, heads, L, S)."""
    *lead, _, L, S = full
    batch = tuple(lead)
    count = st.one_of(st.integers(0, S + 1), per_batch(batch, 0, S + 1))
    side = st.one_of(st.none(), st.integers(0, S + 1))
    single = st.one_of(
        st.builds(regard.causal, offsets(batch, S)),
        st.builds(regard.window, side, side, offsets(batch, S)),
        st.builds(regard.lengths, count),
        st.builds(regard.prefix, count, offsets(batch, S)),
        st.builds(
            regard.padding,
            booleans((*batch, S)),
            st.one_of(st.none(), booleans((*batch, L))),
        ),
        st.builds(regard.documents, per_batch((*batch, L), 0, 2), per_batch((*batch, S), 0, 2)),
        broadcastable(full).flatmap(booleans).map(regard.dense),
    )
    return st.recursive(
        single,
        lambda part: st.one_of(
            st.builds(lambda a, b: a & b, part, part), st.builds(lambda a, b: a | b, part, part)
        ),
        max_leaves=4,
    )


@st.composite
def biases(draw: Any, full: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    heads = full[-3]
    offset = draw(st.one_of(st.integers(-5, 5), st.just("end")))
    match draw(st.sampled_from(["none", "none", "dense", "holes", "alibi", "relative"])):
        case "dense":
            dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
            return rng.normal(size=draw(broadcastable(full))).astype(dtype)
        case "holes":
            array = rng.normal(size=draw(broadcastable(full))).astype(np.float32)
            return np.where(rng.random(array.shape) < 0.3, np.float32(-np.inf), array)
        case "alibi":
            return regard.alibi(rng.random(heads).astype(np.float32), offset)
        case "relative":
            table = rng.normal(size=(draw(st.sampled_from([4, 7, 32])), heads))
            return regard.relative(
                table.astype(np.float32),
                bidirectional=draw(st.booleans()),
                max_distance=draw(st.sampled_from([17, 128])),
                offset=offset,
            )
    return None


@st.composite
def observes(draw: Any, L: int, S: int) -> regard.Observe:
    flags = {name: draw(st.booleans()) for name in ("lse", "entropy", "peak", "sink")}
    top = st.integers(1, min(S, 9)) if S else st.none()
    grid = st.tuples(st.integers(1, L), st.integers(1, S)) if L and S else st.none()
    return regard.Observe(
        **flags,
        top=draw(st.one_of(st.none(), top)),
        received=draw(st.one_of(st.none(), st.just("all"), st.integers(1, L + 2))),
        map=draw(st.one_of(st.none(), grid)),
        spans=draw(st.one_of(st.none(), st.tuples(runs(L), runs(S)))),
    )


def runs(size: int) -> st.SearchStrategy[Any]:
    """Spans that may overlap, be empty and leave gaps; or None, every position on its own."""
    bound = st.integers(0, size)
    span = st.tuples(bound, bound).map(lambda ends: tuple(sorted(ends)))
    return st.one_of(st.none(), st.lists(span, max_size=5))
