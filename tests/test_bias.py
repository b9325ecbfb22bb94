"""Biases: the formulas, and how they meet the score."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

import regard
from regard._arrays import float64
from regard._bias import Bias, as_bias
from regard._masks import Grid, Sizes

pytestmark = pytest.mark.once


def added(bias: Any, L: int, S: int, batch: tuple[int, ...] = (), heads: int = 1) -> np.ndarray:
    bound: Bias = as_bias(bias).bind(Sizes(batch, heads, L, S))
    got = bound.added(Grid(slice(0, L, 1), slice(0, S, 1), float64))
    return np.broadcast_to(got, (*batch, heads, L, S))


class TestAlibi:
    def test_falls_with_the_distance(self) -> None:
        got = added(regard.alibi([0.5, 2.0]), 2, 3, heads=2)
        want = [[[0, -0.5, -1], [-0.5, 0, -0.5]], [[0, -2, -4], [-2, 0, -2]]]
        np.testing.assert_array_equal(got, want)

    def test_the_end_of_the_queries_is_the_end_of_the_keys(self) -> None:
        got = added(regard.alibi([1.0], offset="end"), 2, 4)
        np.testing.assert_array_equal(got, [[[-2, -1, 0, -1], [-3, -2, -1, 0]]])


class TestRelative:
    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 1000)])
    def test_buckets_are_those_of_t5(
        self, bidirectional: bool, buckets: int, max_distance: int
    ) -> None:
        table = np.random.default_rng(0).normal(size=(buckets, 3)).astype(np.float32)
        bias = regard.relative(table, bidirectional=bidirectional, max_distance=max_distance)
        L, S = 5, 400
        distance = torch.arange(S)[None] - torch.arange(L)[:, None]
        bucket = T5Attention._relative_position_bucket(
            distance, bidirectional, buckets, max_distance
        )
        want = np.moveaxis(table[bucket.numpy()], -1, 0)
        np.testing.assert_array_equal(added(bias, L, S, heads=3), want)

    def test_an_offset_moves_the_queries(self) -> None:
        table = np.random.default_rng(0).normal(size=(32, 1))
        whole = added(regard.relative(table), 10, 10)
        np.testing.assert_array_equal(
            added(regard.relative(table, offset="end"), 3, 10), whole[:, 7:]
        )


class TestDense:
    @pytest.mark.parametrize("shape", [(), (6,), (5, 1), (4, 1, 6), (2, 1, 1, 1), (2, 4, 5, 6)])
    def test_broadcasts(self, shape: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).normal(size=shape)
        got = added(array, 5, 6, batch=(2,), heads=4)
        np.testing.assert_array_equal(got, np.broadcast_to(array, (2, 4, 5, 6)))

    def test_minus_infinity_equals_a_mask(self) -> None:
        rng = np.random.default_rng(0)
        query, key, value = (rng.normal(size=(2, n, 4)) for n in (5, 6, 6))
        visible = rng.random((5, 6)) < 0.6
        arrays = query, key, value
        masked = regard.attention(*arrays, mask=visible, backend="reference")
        holes = np.where(visible, 0.0, -np.inf)
        biased = regard.attention(*arrays, bias=holes, backend="reference")
        np.testing.assert_array_equal(masked, biased)


def test_a_selection_adds_what_the_whole_adds_there() -> None:
    rng = np.random.default_rng(0)
    sizes = Sizes((2, 3), 4, 5, 6)
    at = Grid(slice(1, 5, 2), slice(0, 6, 1), float64)
    for bias in (
        as_bias(rng.normal(size=(3, 1, 5, 1))),
        regard.alibi(rng.random(4)),
        regard.relative(rng.normal(size=(8, 4)), max_distance=9),
    ):
        bound = bias.bind(sizes)
        whole = np.broadcast_to(bound.added(at), (2, 3, 4, 2, 6))
        some = bound.select((1, slice(0, 2)), slice(1, 3)).added(at)
        np.testing.assert_array_equal(np.broadcast_to(some, (2, 2, 2, 6)), whole[1, :2, 1:3])
