"""Every backend where sums overflow, ranges are empty, weights are equal or scores are NaN."""

from typing import Any

import numpy as np
import pytest

import regard
from regard._backends import NAMES

EVERYTHING = regard.Observe(lse=True, entropy=True, peak=True, top=3, received="all")


@pytest.mark.parametrize("backend", NAMES)
def test_masks_that_exclude_each_other(backend: str) -> None:
    query, key = np.ones((20, 16), np.float32), np.ones((200, 16), np.float32)
    documents = regard.documents(np.zeros(20, int), np.zeros(200, int))
    mask = documents & regard.lengths(50) & regard.window(0, None, offset=100)
    assert not regard.attention(query, key, key, mask=mask, backend=backend).any()


@pytest.mark.parametrize("backend", NAMES)
def test_equal_scores_are_listed_by_key_after_a_greater_one(backend: str) -> None:
    key = np.array([[5], [5], [6], [5], [6]], np.float32)
    observe = regard.Observe(top=4)
    _, seen = regard.attention(key[:1] / 5, key, key, observe=observe, backend=backend)
    assert seen.top.keys.tolist() == [[2, 4, 0, 1]]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entropy_behind_a_bias_of_the_least_number(backend: str, dtype: Any) -> None:
    ones, bias = np.ones((200, 4), dtype), np.zeros(200, dtype)
    bias[:128] = np.finfo(dtype).min
    observe = regard.Observe(entropy=True)
    _, seen = regard.attention(ones[:1], ones, ones, bias=bias, observe=observe, backend=backend)
    np.testing.assert_allclose(seen.entropy, np.log(72), rtol=1e-5)


@pytest.mark.parametrize("backend", NAMES)
def test_a_query_of_nan_is_nan_in_all_it_gives(backend: str) -> None:
    query, key = np.array([[np.nan], [1]], np.float32), np.ones((3, 1), np.float32)
    observe = regard.Observe(received="all", map=(2, 1), peak=True)
    _, seen = regard.attention(query, key, key, observe=observe, backend=backend)
    assert np.isnan(seen.received).all()
    assert np.isnan(seen.map).tolist() == [[True], [False]]
    assert np.isnan(seen.peak.weight).tolist() == [True, False]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("score", [1e4, 1e7, -1e7])
def test_equal_weights_of_great_scores(backend: str, score: float) -> None:
    query, key = np.full((1, 1), score, np.float32), np.ones((2, 1), np.float32)
    observe = regard.Observe(peak=True, top=2, received="all")
    _, seen = regard.attention(query, key, key, scale=1, observe=observe, backend=backend)
    assert seen.peak.weight.tolist() == [0.5]
    assert seen.top.weights.tolist() == [[0.5, 0.5]]
    assert seen.received.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("backend", NAMES)
class TestVisibleNaN:
    def test_in_a_query_spoils_its_row_alone(self, backend: str) -> None:
        rng = np.random.default_rng(2)
        query, key, value = (rng.normal(size=(20, 8)).astype("f") for _ in range(3))
        query[7, 3] = np.nan
        context, seen = regard.attention(query, key, value, observe=EVERYTHING, backend=backend)
        bad = np.arange(20) == 7
        np.testing.assert_array_equal(np.isnan(context).all(axis=-1), bad)
        np.testing.assert_array_equal(np.isnan(seen.lse), bad)
        np.testing.assert_array_equal(np.isnan(seen.entropy), bad)
        assert ((seen.peak.key >= -1) & (seen.peak.key < 20)).all()
        assert ((seen.top.keys >= -1) & (seen.top.keys < 20)).all()

    def test_in_a_key_spoils_the_rows_that_see_it(self, backend: str) -> None:
        rng = np.random.default_rng(2)
        query, key, value = (rng.normal(size=(20, 8)).astype("f") for _ in range(3))
        key[12] = np.nan
        context, seen = regard.attention(
            query, key, value, mask=regard.causal(), observe=EVERYTHING, backend=backend
        )
        np.testing.assert_array_equal(np.isnan(context).all(axis=-1), np.arange(20) >= 12)
        np.testing.assert_array_equal(np.isnan(seen.lse), np.arange(20) >= 12)

    def test_in_a_value_spoils_its_column_of_the_rows_that_see_it(self, backend: str) -> None:
        rng = np.random.default_rng(2)
        query, key, value = (rng.normal(size=(20, 8)).astype("f") for _ in range(3))
        value[12, 5] = np.nan
        context = regard.attention(query, key, value, mask=regard.causal(), backend=backend)
        want = np.zeros((20, 8), bool)
        want[12:, 5] = True
        np.testing.assert_array_equal(np.isnan(context), want)

    def test_an_infinite_value_makes_an_infinite_context(self, backend: str) -> None:
        value = np.float32([[1, -np.inf, np.inf], [np.inf, 2, -np.inf]])
        context = regard.attention(
            np.zeros((1, 2), "f"), np.zeros((2, 2), "f"), value, backend=backend
        )
        np.testing.assert_array_equal(context, [[np.inf, -np.inf, np.nan]])

    def test_a_score_of_plus_infinity_is_undefined(self, backend: str) -> None:
        key = np.float32([[1], [np.inf], [2]])
        context, seen = regard.attention(
            np.ones((1, 1), "f"),
            key,
            np.ones((3, 1), "f"),
            observe=regard.Observe(lse=True),
            backend=backend,
        )
        assert np.isnan(context).all()
        assert np.isnan(seen.lse).all()

    def test_a_score_of_minus_infinity_masks(self, backend: str) -> None:
        key = np.float32([[1], [-np.inf], [2]])
        context = regard.attention(
            np.ones((1, 1), "f"), key, np.float32([[1], [np.nan], [1]]), backend=backend
        )
        np.testing.assert_allclose(context, [[1.0]], rtol=1e-6)
