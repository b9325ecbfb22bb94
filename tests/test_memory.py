"""The soft dictionary; its worked examples are doctests of its module."""

import doctest
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch

import regard
from regard import _memory

pytestmark = pytest.mark.once

KEYS = np.random.default_rng(0).normal(size=(20, 4))
VALUES = np.random.default_rng(1).normal(size=(20, 3))
QUERIES = np.random.default_rng(2).normal(size=(5, 4))


@pytest.fixture
def memory() -> regard.Memory:
    memory = regard.Memory()
    memory.append(KEYS, VALUES)
    return memory


def test_the_worked_examples() -> None:
    result = doctest.testmod(_memory)
    assert result.attempted >= 8
    assert result.failed == 0


class TestAppending:
    def test_one_by_one_equals_all_at_once(self, memory: regard.Memory) -> None:
        other = regard.Memory()
        for key, value in zip(KEYS, VALUES, strict=True):
            other.append(key, value)
        np.testing.assert_array_equal(other[QUERIES], memory[QUERIES])

    def test_after_a_look_goes_on(self, memory: regard.Memory) -> None:
        _ = memory[QUERIES]
        memory.append(KEYS[0], VALUES[0])
        assert len(memory) == 21
        np.testing.assert_array_equal(memory.keys[-1], KEYS[0])
        np.testing.assert_array_equal(memory.values[-1], VALUES[0])

    def test_what_did_not_fit_was_not_kept(self, memory: regard.Memory) -> None:
        with pytest.raises(regard.ShapeError):
            memory.append(KEYS[0], VALUES[:2])
        assert len(memory) == 20

    def test_it_tells_what_it_holds(self, memory: regard.Memory) -> None:
        assert repr(memory) == "Memory(20 keys of size 4, values of size 3)"
        assert repr(regard.Memory()) == "Memory(empty)"


class TestLooking:
    def test_is_attention(self, memory: regard.Memory) -> None:
        want = regard.attention(QUERIES, KEYS, VALUES)
        np.testing.assert_array_equal(memory[QUERIES], want)

    def test_one_query(self, memory: regard.Memory) -> None:
        value, weights = memory.look(QUERIES[0], weights=True)
        assert (value.shape, weights.shape) == ((3,), (20,))

    @pytest.mark.parametrize("options", [{}, {"top": 3}, {"temperature": 0.2}, {"temperature": 0}])
    def test_the_value_is_the_weighted_mean(self, memory: Any, options: Any) -> None:
        value, weights = memory.look(QUERIES, weights=True, **options)
        np.testing.assert_allclose(weights @ VALUES, value, rtol=1e-12)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)

    def test_top_reads_the_best_alone(self, memory: regard.Memory) -> None:
        _, every = memory.look(QUERIES, weights=True)
        _, best = memory.look(QUERIES, top=3, weights=True)
        kept = np.argsort(-every, axis=-1)[:, :3]
        want = np.zeros_like(every)
        np.put_along_axis(want, kept, np.take_along_axis(every, kept, -1), -1)
        np.testing.assert_allclose(best, want / want.sum(axis=-1, keepdims=True), rtol=1e-12)

    def test_top_of_all_is_all(self, memory: regard.Memory) -> None:
        np.testing.assert_allclose(memory.look(QUERIES, top=20), memory[QUERIES], rtol=1e-12)

    def test_temperature_zero_is_the_hard_lookup(self, memory: regard.Memory) -> None:
        best = (QUERIES @ KEYS.T).argmax(axis=-1)
        np.testing.assert_array_equal(memory.look(QUERIES, temperature=0), VALUES[best])

    @pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-20])
    def test_toward_zero_the_lookup_becomes_hard(self, memory: Any, temperature: float) -> None:
        got = memory.look(QUERIES, temperature=temperature)
        np.testing.assert_allclose(got, memory.look(QUERIES, temperature=0), rtol=1e-9)

    def test_toward_infinity_it_becomes_the_mean(self, memory: regard.Memory) -> None:
        got = memory.look(QUERIES, temperature=1e9)
        np.testing.assert_allclose(got, np.tile(VALUES.mean(axis=0), (5, 1)), rtol=1e-6)

    def test_of_equal_keys_the_hard_lookup_reads_the_first(self) -> None:
        memory = regard.Memory()
        memory.append(np.ones((3, 2)), [[1.0], [2.0], [3.0]])
        assert memory.look([1.0, 1.0], temperature=0) == [1.0]

    @pytest.mark.parametrize("match", [0, 1, 2])
    def test_a_key_that_cannot_match_is_not_read(self, match: int) -> None:
        keys, values = np.full((3, 1), -np.inf), np.full((3, 1), np.nan)
        keys[match], values[match] = 1, 5
        memory = regard.Memory()
        memory.append(keys, values)
        value, weights = memory.look([1.0], top=2, weights=True)
        np.testing.assert_array_equal(value, [5.0])
        np.testing.assert_allclose(weights, np.arange(3) == match, rtol=1e-12)


class TestKinds:
    def test_torch_and_its_gradients(self) -> None:
        keys, values, query = (
            torch.from_numpy(x).requires_grad_() for x in (KEYS, VALUES, QUERIES)
        )
        memory = regard.Memory()
        memory.append(keys, values)
        for options in ({}, {"top": 4}):
            value, weights = memory.look(query, weights=True, **options)
            assert isinstance(weights, torch.Tensor)
            gradients = torch.autograd.grad(value.sum(), (keys, values, query))
            torch.testing.assert_close(gradients[1].sum(dim=1), 3 * weights.sum(dim=0))

    def test_torch_equals_numpy(self, memory: regard.Memory) -> None:
        other = regard.Memory()
        other.append(torch.from_numpy(KEYS), torch.from_numpy(VALUES))
        for options in ({}, {"top": 4}, {"temperature": 0}):
            got = other.look(torch.from_numpy(QUERIES), weights=True, **options)
            want = memory.look(QUERIES, weights=True, **options)
            for x, y in zip(got, want, strict=True):
                np.testing.assert_array_equal(x.numpy(), y)

    def test_the_array_api(self, memory: regard.Memory) -> None:
        query = array_api_strict.asarray(QUERIES)
        got, weights = memory.look(query, weights=True)
        assert type(got) is type(weights) is type(query)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_the_dtype_stays(self, dtype: Any) -> None:
        memory = regard.Memory()
        memory.append(KEYS.astype(dtype), VALUES.astype(dtype))
        assert memory[QUERIES.astype(dtype)].dtype == dtype
        assert memory.look(QUERIES.astype(dtype), top=2).dtype == dtype


@pytest.mark.parametrize("temperature", [1e-5, 1e-10, 1e-20])
def test_a_cold_lookup_weighs_one_at_most(temperature: float) -> None:
    memory = regard.Memory()
    memory.append(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    query = np.array([0.9, 0.8, 0.1], np.float32)
    _, weights = memory.look(query, temperature=temperature, weights=True)
    assert weights.tolist() == [1, 0, 0]


def test_what_was_appended_is_not_changed_from_outside() -> None:
    key, value = np.ones((1, 2)), np.ones((1, 2))
    memory = regard.Memory()
    memory.append(key, value)
    value[:] = 100
    assert memory[np.ones(2)].tolist() == [1, 1]
