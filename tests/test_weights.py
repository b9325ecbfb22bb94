"""The lazy matrix: any part equals that part of the whole, and the whole is never stored."""

import time
import tracemalloc
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SMALL, Case, cases

import regard
from regard._backends.reference import Rows

BATCH, HEADS, L, S = (2, 3), 4, 9, 11
SHAPE = (*BATCH, HEADS, L, S)


def inputs(dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(*BATCH, HEADS, L, 8)).astype(dtype),
        rng.normal(size=(*BATCH, 2, S, 8)).astype(dtype),
    )


def options() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "mask": regard.causal(np.array([[0, 1, 2], [3, 4, 5]])) & (rng.random(SHAPE) < 0.8),
        "bias": rng.normal(size=(3, 1, L, S)).astype(np.float32),
        "sinks": rng.normal(size=HEADS).astype(np.float32),
        "softcap": 4.0,
    }


@pytest.fixture(scope="module")
def weights() -> regard.Weights:
    return regard.weights(*inputs(), **options())


@pytest.fixture(scope="module")
def whole(weights: regard.Weights) -> np.ndarray:
    """All of them, by the reference."""
    return exact(weights)


def exact(weights: regard.Weights) -> np.ndarray:
    with np.errstate(all="ignore"):
        return Rows.of(weights.problem).weights


def near(got: Any, want: Any) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def indices(size: int) -> st.SearchStrategy[Any]:
    bound = st.one_of(st.none(), st.integers(-size - 2, size + 2))
    step = st.one_of(st.none(), st.integers(1, 4))
    return st.one_of(st.integers(-size, size - 1), st.builds(slice, bound, bound, step))


def any_step(size: int) -> st.SearchStrategy[Any]:
    bound = st.one_of(st.none(), st.integers(-size - 2, size + 2))
    backwards = st.builds(slice, bound, bound, st.integers(-4, -1))
    return st.one_of(indices(size), backwards)


class TestIndexing:
    @given(data=st.data())
    def test_a_selection_is_that_of_the_whole(
        self, weights: regard.Weights, whole: np.ndarray, data: st.DataObject
    ) -> None:
        lead = [data.draw(indices(n)) for n in SHAPE[:-2]]
        index = (*lead, data.draw(any_step(L)), data.draw(any_step(S)))
        near(weights[index], whole[index])

    @given(data=st.data())
    def test_leading_indices_stay_lazy(
        self, weights: regard.Weights, whole: np.ndarray, data: st.DataObject
    ) -> None:
        count = data.draw(st.integers(0, 3))
        index = tuple(data.draw(indices(n)) for n in SHAPE[:count])
        part = weights[index]
        assert isinstance(part, regard.Weights)
        assert part.shape == whole[index].shape
        near(np.asarray(part), whole[index])

    @given(data=st.data())
    def test_a_part_is_indexed_like_the_whole(
        self, weights: regard.Weights, whole: np.ndarray, data: st.DataObject
    ) -> None:
        first = tuple(data.draw(indices(n)) for n in SHAPE[: data.draw(st.integers(1, 3))])
        part, want = weights[first], whole[first]
        second = tuple(data.draw(indices(n)) for n in want.shape if n)
        if len(second) == want.ndim:
            near(part[second], want[second])

    @pytest.mark.parametrize(
        "index",
        [
            (..., 3),
            (..., 2, slice(None)),
            (0, ..., slice(2, 4), slice(None)),
            (1, 2, 3, ..., 4),
            (1, 2, 3, 4, 5),
            (1, 2, 3, 4, 5, ...),
            (slice(None), 0, slice(1, 3), slice(None, None, -1), 0),
            (np.int64(1), np.uint8(2), np.int32(-1), slice(np.int64(2), None)),
        ],
    )
    def test_dots_and_numpy_integers(
        self, weights: regard.Weights, whole: np.ndarray, index: Any
    ) -> None:
        near(weights[index], whole[index])

    def test_one_number(self, weights: regard.Weights, whole: np.ndarray) -> None:
        assert weights[0, 1, 2, 8, 3].shape == ()
        assert float(weights[0, 1, 2, 8, 3]) == pytest.approx(whole[0, 1, 2, 8, 3], abs=2e-6)

    def test_dots_alone_stay_lazy(self, weights: regard.Weights) -> None:
        assert isinstance(weights[...], regard.Weights)
        assert isinstance(weights[()], regard.Weights)

    def test_everything_said_of_the_last_dimensions_is_an_array(
        self, weights: regard.Weights, whole: np.ndarray
    ) -> None:
        near(weights[..., :, :], whole)

    def test_row(self, weights: regard.Weights, whole: np.ndarray) -> None:
        near(weights.row(5), whole[..., 5, :])
        near(weights[0, 1, 2].row(-1), whole[0, 1, 2, -1])

    def test_numpy_takes_it(self, weights: regard.Weights, whole: np.ndarray) -> None:
        near(np.asarray(weights), whole)
        assert np.asarray(weights).dtype == np.float32
        assert np.asarray(weights, np.float64).dtype == np.float64

    def test_numpy_cannot_have_it_without_a_copy(self, weights: regard.Weights) -> None:
        with pytest.raises(ValueError, match="there is only a copy"):
            np.asarray(weights, copy=False)

    def test_a_loop_goes_over_the_first_dimension(self, weights: regard.Weights) -> None:
        assert [part.shape for part in weights] == [SHAPE[1:]] * 2


class TestStatistics:
    """Those of the operator, for the whole and for a part."""

    @pytest.fixture(params=[(), (1,), (slice(None), 0, slice(1, 3)), (1, 2, 3)], ids=str)
    def part(self, request: Any, weights: regard.Weights, whole: np.ndarray) -> Any:
        return weights[request.param], whole[request.param]

    def test_received(self, part: Any) -> None:
        near(part[0].received(), part[1].sum(axis=-2))
        near(part[0].received(last=4), part[1][..., -4:, :].sum(axis=-2))

    def test_peak(self, part: Any) -> None:
        peak = part[0].peak()
        near(peak.weight, part[1].max(axis=-1))
        want = np.where((part[1] > 0).any(axis=-1), part[1].argmax(axis=-1), -1)
        np.testing.assert_array_equal(peak.key, want)

    def test_top(self, part: Any) -> None:
        near(part[0].top(3).weights, -np.sort(-part[1], axis=-1)[..., :3])

    def test_entropy(self, part: Any) -> None:
        sink = 1 - part[1].sum(axis=-1, keepdims=True)
        row = np.concatenate([part[1], np.where(sink > 1 - 1e-12, 0, sink)], axis=-1)
        with np.errstate(all="ignore"):
            want = -np.where(row > 0, row * np.log(row), 0).sum(axis=-1)
        near(part[0].entropy(), want)

    def test_lse_is_the_sum_of_what_is_visible(self, part: Any) -> None:
        """A weight is exp(score - lse); the sink's share is what the keys leave."""
        sinks = part[0].problem.sinks[..., None]
        sinks = sinks[0] if part[0].ndim == 2 else sinks
        near(np.exp(sinks - part[0].lse()), 1 - part[1].sum(axis=-1))

    def test_pooled(self, part: Any) -> None:
        rows = np.array_split(np.arange(L), 4)
        columns = np.array_split(np.arange(S), 3)
        near(part[0].pooled(4, 3), pooled(part[1], rows, columns))

    def test_pooled_in_a_window(self, part: Any) -> None:
        rows = np.array_split(np.arange(2, 9), 3)
        columns = np.array_split(np.arange(4, 10), 4)
        got = part[0].pooled(3, 4, window=((2, 9), (4, 10)))
        near(got, pooled(part[1], rows, columns))


def pooled(whole: np.ndarray, rows: list[np.ndarray], columns: list[np.ndarray]) -> np.ndarray:
    """Means over the rows of a bin that see something, number by number."""
    seen = (whole > 0).any(axis=-1)
    out = np.zeros((*whole.shape[:-2], len(rows), len(columns)))
    for n, r in enumerate(rows):
        count = np.maximum(seen[..., r].sum(axis=-1), 1)
        for m, c in enumerate(columns):
            out[..., n, m] = whole[..., r, :][..., c].sum(axis=(-1, -2)) / count
    return out


@given(case=cases(dtypes=("float64", "float32"), sizes=SMALL))
def test_the_whole_is_that_of_the_reference(case: Case) -> None:
    weights = regard.weights(*case.arrays[:2], **case.options)
    want = exact(weights)
    np.testing.assert_allclose(np.asarray(weights), want, rtol=2e-5, atol=2e-6)


class TestKinds:
    def test_two_dimensions(self) -> None:
        query, key = inputs()
        weights = regard.weights(query[0, 0, 0], key[0, 0, 0])
        assert weights.shape == (L, S)
        assert weights[3].shape == (S,)
        assert weights[1:3, 2].shape == (2,)
        assert weights.entropy().shape == (L,)
        assert weights.received().shape == (S,)
        assert weights.pooled(2, 3).shape == (2, 3)
        assert weights.top(4).keys.shape == (L, 4)
        assert weights.lse().shape == (L,)

    def test_torch(self) -> None:
        query, key = (torch.from_numpy(x) for x in inputs())
        weights, want = regard.weights(query, key), regard.weights(*inputs())
        for got, expected in (
            (weights[0, 1, 2, ::-2, 3:], want[0, 1, 2, ::-2, 3:]),
            (weights[1].received(), want[1].received()),
            (weights[:, 1, 2].lse(), want[:, 1, 2].lse()),
        ):
            assert isinstance(got, torch.Tensor)
            np.testing.assert_array_equal(got.numpy(), expected)
        np.testing.assert_array_equal(np.asarray(weights), np.asarray(want))

    def test_the_array_api(self) -> None:
        query, key = (array_api_strict.asarray(x) for x in inputs())
        weights, want = regard.weights(query, key), regard.weights(*inputs())
        got = weights[0, 0, 0, 1:4, :]
        assert type(got) is type(query)
        np.testing.assert_array_equal(np.from_dlpack(got), want[0, 0, 0, 1:4, :])

    @pytest.mark.parametrize("backend", ["native", "blockwise", "reference"])
    def test_any_backend(self, backend: str) -> None:
        got = regard.weights(*inputs(), **options(), backend=backend)
        want = regard.weights(*inputs(np.float64), **options(), backend="reference")
        near(got.entropy(), want.entropy())
        near(np.asarray(got), np.asarray(want))

    def test_float64_stays(self) -> None:
        weights = regard.weights(*inputs(np.float64), **options())
        assert np.asarray(weights).dtype == np.float64
        np.testing.assert_allclose(np.asarray(weights), exact(weights), rtol=1e-12, atol=1e-15)

    def test_it_names_its_shape(self, weights: regard.Weights) -> None:
        assert repr(weights[0]) == "Weights(shape=(3, 4, 9, 11), dtype=float32)"


class TestLogSumExp:
    """Computed for the rows that are asked for, once, and known to all parts."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        rows: list[tuple[int, int]] = []
        original = regard.Weights._seen

        def noted(self: Any, problem: Any, observe: Any) -> Any:
            rows.append((problem.row, problem.row + problem.L))
            return original(self, problem, observe)

        monkeypatch.setattr(regard.Weights, "_seen", noted)
        return rows

    @pytest.fixture
    def long(self) -> regard.Weights:
        rng = np.random.default_rng(0)
        return regard.weights(*(rng.normal(size=(2, 500, 4)).astype("f") for _ in range(2)))

    def test_of_the_rows_asked_for(self, asked: Any, long: regard.Weights) -> None:
        _ = long[0, 100:110, :5]
        assert asked == [(100, 110)]

    def test_once(self, asked: Any, long: regard.Weights) -> None:
        _ = long[0, 100:110, :5]
        _ = long[0, 105:110, 7:]
        assert len(asked) == 1

    def test_what_a_part_learned_the_whole_knows(self, asked: Any, long: regard.Weights) -> None:
        _ = long[0, 100:110, :5]
        _ = long[1][100:110]
        _ = long[:, 100:110]
        assert len(asked) == 2

    def test_only_of_what_is_missing(self, asked: Any, long: regard.Weights) -> None:
        _ = long[0, 100:200]
        _ = long[0, 150:250]
        assert asked == [(100, 200), (200, 250)]

    def test_far_rows_apart_and_near_rows_together(self, asked: Any, long: regard.Weights) -> None:
        _ = long[0, 0:41:10]
        _ = long[0, 100:500:100]
        assert asked == [(0, 41), (100, 101), (200, 201), (300, 301), (400, 401)]

    def test_is_not_computed_when_it_is_handed_in(self, asked: Any, long: regard.Weights) -> None:
        want, lse = np.asarray(long), long.lse()
        asked.clear()
        known = regard.Weights(long.problem, lse)
        # A float32 lse is rounded by 6e-8 x |lse|, here about 7; so are the weights.
        np.testing.assert_allclose(np.asarray(known), want, rtol=1e-6)
        assert asked == []

    def test_may_be_a_tensor(self, long: regard.Weights) -> None:
        known = regard.Weights(long.problem, torch.from_numpy(long.lse()))
        np.testing.assert_allclose(np.asarray(known), np.asarray(long), rtol=1e-6)


@pytest.fixture(scope="module")
def huge() -> regard.Weights:
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(100_000, 64)).astype(np.float32) for _ in range(2))
    return regard.weights(query, key, mask=regard.causal())


class TestSize:
    """A matrix of 100,000 x 100,000."""

    def test_a_tile_comes_in_milliseconds(self, huge: regard.Weights) -> None:
        rows, keys = slice(90_000, 90_256), slice(50_000, 50_256)
        times = []
        for _ in range(30):  # of which a busy machine may spoil many
            start = time.perf_counter()
            _ = huge[rows, keys]
            times.append(time.perf_counter() - start)
        # 3 GFLOP for the rows' lse over 90,000 keys; the matrix would take 10,000 times as long.
        assert min(times) < 0.1

    def test_a_tile_takes_the_memory_of_a_tile(self, huge: regard.Weights) -> None:
        _ = huge[1000:1256, :1]
        tracemalloc.start()
        _ = huge[1000:1256, 500:756]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20 * 256 * 256 * 8

    def test_a_row_sums_to_one(self, huge: regard.Weights) -> None:
        assert huge.row(77_777).sum() == pytest.approx(1, abs=1e-5)

    def test_a_broadcast_bias_stays_broadcast(self) -> None:
        """A bias of one row for a million queries and heads costs a tile for a tile."""
        query, key = np.ones((64, 10**6, 1), "f"), np.ones((64, 10**4, 1), "f")
        weights = regard.weights(query, key, bias=np.zeros(10**4, "f"))
        assert weights[3, 5:7, ::1000].shape == (2, 10)


class TestHeads:
    """Narrowing to some heads keeps each with its own key head."""

    @pytest.mark.parametrize(
        "heads", [slice(1, 3), slice(0, 6, 2), slice(1, 6, 3), slice(3, 5), slice(2, 2), 5]
    )
    @pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
    def test_of_a_group(self, heads: Any, kv_heads: int) -> None:
        rng = np.random.default_rng(0)
        query, key = rng.normal(size=(2, 6, 4, 3)), rng.normal(size=(2, kv_heads, 5, 3))
        weights = regard.weights(query, key)
        want = exact(weights)
        near(np.asarray(weights[:, heads]), want[:, heads])
        near(np.asarray(weights[1, heads]), want[1, heads])


@pytest.mark.parametrize("score", [1e4, 1e6, 1e7])
def test_weights_of_great_scores_sum_to_one(score: float) -> None:
    query, key = np.full((1, 1), score, np.float32), np.ones((2, 1), np.float32)
    assert regard.weights(query, key, scale=1)[0].tolist() == [0.5, 0.5]
