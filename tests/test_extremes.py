"""Every backend where sums overflow, ranges are empty, weights are equal or scores are NaN."""

from typing import Any

import numpy as np
import pytest

import regard
from regard._backends import NAMES


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
