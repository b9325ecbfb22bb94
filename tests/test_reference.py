"""The specification itself: numbers worked by hand, and a loop that shares nothing with it."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regard

pytestmark = pytest.mark.once

# Two keys whose scores are 0 and log 3: weights 1/4 and 3/4.
QUERY = np.array([[1.0]])
KEY = np.array([[0.0], [math.log(3)]])
VALUE = np.array([[8.0, 0.0], [0.0, 4.0]])


def look(observe: regard.Observe | None = None, **options: Any) -> Any:
    return regard.attention(QUERY, KEY, VALUE, observe=observe, backend="reference", **options)


def seen(observe: regard.Observe, **options: Any) -> Any:
    return look(observe, **options)[1]


class TestByHand:
    def test_context(self) -> None:
        np.testing.assert_allclose(look(), [[2.0, 3.0]])

    def test_scale_multiplies_the_score(self) -> None:
        # Scores 0 and 2 log 3: weights 1/10 and 9/10.
        np.testing.assert_allclose(look(scale=2.0), [[0.8, 3.6]])

    def test_the_default_scale_is_one_over_the_root_of_the_key_dimension(self) -> None:
        query, key = np.array([[1.0, 1, 1, 1]]), np.array([[0.0] * 4, [2 * math.log(3), 0, 0, 0]])
        context = regard.attention(query, key, VALUE, backend="reference")
        np.testing.assert_allclose(context, [[2.0, 3.0]])

    def test_softcap_bounds_the_score(self) -> None:
        # A cap so low that both scores nearly reach it: 0 and 0.001.
        np.testing.assert_allclose(look(softcap=0.001, scale=1e6), [[4.0, 2.0]], atol=2e-3)

    def test_bias_is_added_after_the_softcap(self) -> None:
        # Scores nearly 0 and 0.001, then log 3 on the first.
        context = look(softcap=0.001, bias=np.array([[math.log(3), 0.0]]))
        np.testing.assert_allclose(context, [[6.0, 1.0]], atol=2e-3)

    def test_a_bias_of_minus_infinity_masks(self) -> None:
        np.testing.assert_allclose(look(bias=np.array([[0.0, -np.inf]])), [[8.0, 0.0]])

    def test_mask_hides_a_key(self) -> None:
        np.testing.assert_allclose(look(mask=np.array([False, True])), [[0.0, 4.0]])

    def test_a_sink_takes_its_share(self) -> None:
        # exp(log 4) = 4 beside 1 and 3: the keys keep half of their weights.
        np.testing.assert_allclose(look(sinks=np.array([math.log(4)])), [[1.0, 1.5]])

    def test_lse(self) -> None:
        assert seen(regard.Observe(lse=True)).lse == pytest.approx([math.log(4)])

    def test_lse_includes_the_sink(self) -> None:
        sinks = np.array([math.log(4)])
        assert seen(regard.Observe(lse=True), sinks=sinks).lse == pytest.approx([math.log(8)])

    def test_entropy(self) -> None:
        want = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
        assert seen(regard.Observe(entropy=True)).entropy == pytest.approx([want])

    def test_entropy_includes_the_sink(self) -> None:
        # Weights 1/8, 3/8 and 4/8.
        want = math.log(8) / 8 + 3 / 8 * math.log(8 / 3) + math.log(2) / 2
        got = seen(regard.Observe(entropy=True), sinks=np.array([math.log(4)])).entropy
        assert got == pytest.approx([want])

    def test_peak(self) -> None:
        peak = seen(regard.Observe(peak=True)).peak
        assert (peak.weight[0], peak.key[0]) == (pytest.approx(0.75), 1)

    def test_top_falls(self) -> None:
        top = seen(regard.Observe(top=2)).top
        np.testing.assert_array_equal(top.keys, [[1, 0]])
        np.testing.assert_allclose(top.weights, [[0.75, 0.25]])

    def test_top_has_empty_slots(self) -> None:
        top = seen(regard.Observe(top=2), mask=np.array([True, False])).top
        np.testing.assert_array_equal(top.keys, [[0, -1]])
        np.testing.assert_allclose(top.weights, [[1.0, 0.0]])

    def test_sink(self) -> None:
        got = seen(regard.Observe(sink=True), sinks=np.array([math.log(4)])).sink
        assert got == pytest.approx([0.5])

    def test_without_sinks_nothing_goes_there(self) -> None:
        assert seen(regard.Observe(sink=True)).sink == [0.0]


class TestSumsOverQueries:
    """Three queries that see the first one, two and three of equal keys."""

    @pytest.fixture
    def ones(self) -> Any:
        x = np.ones((3, 2))

        def observed(**wanted: Any) -> regard.Observation:
            _, observation = regard.attention(
                x, x, x, mask=regard.causal(), observe=regard.Observe(**wanted), backend="reference"
            )
            return observation

        return observed

    def test_received(self, ones: Any) -> None:
        want = [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3]
        np.testing.assert_allclose(ones(received="all").received, want)

    def test_received_by_the_last(self, ones: Any) -> None:
        np.testing.assert_allclose(ones(received=2).received, [5 / 6, 5 / 6, 1 / 3])

    def test_received_by_more_than_there_are(self, ones: Any) -> None:
        np.testing.assert_allclose(ones(received=9).received, ones(received="all").received)

    def test_map_cuts_as_array_split_does(self, ones: Any) -> None:
        # Queries (0, 1) and (2); keys (0, 1) and (2).
        np.testing.assert_allclose(ones(map=(2, 2)).map, [[1, 0], [2 / 3, 1 / 3]])

    def test_spans_may_overlap_and_be_empty(self, ones: Any) -> None:
        got = ones(spans=([(0, 3), (1, 2), (1, 1)], [(0, 2), (1, 3)])).spans
        np.testing.assert_allclose(got, [[8 / 9, 7 / 18], [1, 1 / 2], [0, 0]])

    def test_spans_of_single_positions(self, ones: Any) -> None:
        got = ones(spans=(None, None)).spans
        np.testing.assert_allclose(got, [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])


def by_loops(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    visible: np.ndarray,
    bias: np.ndarray,
    scale: float,
    softcap: float | None,
    sinks: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Context and lse, number by number."""
    heads, L, _ = query.shape
    S, d_v = value.shape[1:]
    context, lse = np.zeros((heads, L, d_v)), np.full((heads, L), -np.inf)
    for h in range(heads):
        kv = h * key.shape[0] // heads
        for i in range(L):
            total = math.exp(sinks[h])
            for j in range(S):
                if visible[h, i, j]:
                    score = scale * sum(a * b for a, b in zip(query[h, i], key[kv, j], strict=True))
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    part = math.exp(score + bias[h, i, j])
                    total += part
                    context[h, i] += part * value[kv, j]
            if total > 0:
                context[h, i] /= total
                lse[h, i] = math.log(total)
    return context, lse


@given(
    seed=st.integers(0, 2**32),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    sizes=st.tuples(*[st.integers(0, 5)] * 4),
    softcap=st.one_of(st.none(), st.floats(0.5, 5)),
)
def test_it_agrees_with_loops(
    seed: int, heads: tuple[int, int], sizes: tuple[int, ...], softcap: float | None
) -> None:
    rng = np.random.default_rng(seed)
    L, S, d_k, d_v = sizes
    query, key, value = (
        rng.normal(size=(h, *shape))
        for h, *shape in ((heads[0], L, d_k), (heads[1], S, d_k), (heads[1], S, d_v))
    )
    full = (heads[0], L, S)
    visible, bias = rng.random(full) < 0.7, rng.normal(size=full)
    sinks = rng.normal(size=heads[0])
    options = {"bias": bias, "scale": 0.7, "softcap": softcap, "sinks": sinks}
    context, seen = regard.attention(
        query,
        key,
        value,
        mask=visible,
        observe=regard.Observe(lse=True),
        backend="reference",
        **options,
    )
    want_context, want_lse = by_loops(query, key, value, visible, **options)
    np.testing.assert_allclose(context, want_context, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(seen.lse, want_lse, rtol=1e-10, atol=1e-12)


def test_scores_of_a_tile_are_those_of_the_whole() -> None:
    """Any rows and keys, strided or not, of a problem that holds some rows only."""
    from regard._backends.reference import scores
    from regard._problem import make_problem

    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 4, 30, 8)), rng.normal(size=(2, 2, 40, 8))
    bias = rng.normal(size=(1, 4, 30, 40))
    mask = regard.causal("end") | regard.lengths(np.array([3, 5]))
    problem = make_problem(query, key, None, mask=mask, bias=bias, softcap=3.0)
    whole = scores(problem, slice(0, 30, 1), slice(0, 40, 1))
    tile = scores(problem.rows(4, 30), slice(1, 20, 3), slice(5, 40, 7))
    np.testing.assert_allclose(tile, whole[..., 5:24:3, 5:40:7], rtol=1e-12)


def test_statistics_are_float32_unless_the_input_is_float64() -> None:
    for dtype, want in ((np.float16, np.float32), (np.float32, np.float32), (np.float64,) * 2):
        x = np.ones((2, 2), dtype)
        _, seen = regard.attention(x, x, x, observe=regard.Observe(lse=True), backend="reference")
        assert seen.lse.dtype == want
