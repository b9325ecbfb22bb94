"""Dropout: which weights go, the same for every backend, and what stays as it was."""

from typing import Any

import numpy as np
import pytest
import torch

import regard
from regard._dropout import kept
from regard._observation import NOTHING
from regard._problem import make_problem

BACKENDS = ("native", "blockwise", "reference")
SEED = 1234567890123456789


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def grid(seed: int, chance: float, matrices: int = 1, L: int = 1000, S: int = 1000) -> np.ndarray:
    matrix = np.arange(matrices).reshape(matrices, 1, 1)
    found: np.ndarray = kept(seed, chance, matrix, np.arange(L)[:, None], np.arange(S))
    return found


class TestWhichWeightsGo:
    @pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
    def test_as_many_as_the_chance_says(self, chance: float) -> None:
        dropped = 1 - grid(1, chance).mean()
        assert dropped == pytest.approx(chance, abs=5 * (chance * (1 - chance) / 1e6) ** 0.5)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_no_row_and_no_column_stands_out(self, axis: int) -> None:
        shares = grid(2, 0.5)[0].mean(axis=axis)
        assert np.abs(shares - 0.5).max() < 5.5 * 0.5 / 1000**0.5  # of 1000 sums, in deviations

    def test_neighbours_know_nothing_of_each_other(self) -> None:
        x = grid(3, 0.5, matrices=2, L=1500, S=1500) * 2.0 - 1.0
        y = grid(4, 0.5, L=1500, S=1500)[0] * 2.0 - 1.0
        pairs = {
            "keys": (x[0, :, 1:], x[0, :, :-1]),
            "queries": (x[0, 1:], x[0, :-1]),
            "diagonal": (x[0, 1:, 1:], x[0, :-1, :-1]),
            "heads": (x[0], x[1]),
            "seeds": (x[0], y),
        }
        for a, b in pairs.values():
            assert abs((a * b).mean()) < 5 / 1500

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("L", [1, 2, 37])
    def test_are_the_same_for_every_backend(self, dtype: type, L: int) -> None:
        query, key = normal(2, 4, L, 8, dtype=dtype), normal(2, 2, 300, 8, seed=1, dtype=dtype)
        value = normal(2, 2, 300, 5, seed=2, dtype=dtype)
        mask = regard.causal("end")
        problem = make_problem(query, key, value, mask=mask, dropout=0.4, seed=SEED)
        found = [_run(problem, backend) for backend in BACKENDS]
        tolerance = 1e-12 if dtype is np.float64 else 2e-6
        for context in found:
            np.testing.assert_allclose(context, found[-1], rtol=0, atol=tolerance)

    def test_do_not_depend_on_the_rest_of_the_batch_that_follows(self) -> None:
        x = normal(3, 2, 20, 8)
        whole = _run(make_problem(x, x, x, dropout=0.5, seed=SEED), "native")
        first = _run(make_problem(x[:1], x[:1], x[:1], dropout=0.5, seed=SEED), "native")
        assert np.array_equal(whole[:1], first)


def _run(problem: Any, backend: str) -> np.ndarray:
    from regard._backends import pick

    context, _ = pick(problem, NOTHING, backend)[0].run(problem, NOTHING)
    return np.asarray(context)


class TestTheSeed:
    def test_of_tensors_is_torchs(self) -> None:
        x = torch.from_numpy(normal(2, 30, 8))

        def attend(seed: int) -> torch.Tensor:
            torch.manual_seed(seed)
            context: torch.Tensor = regard.attention(x, x, x, dropout=0.5)
            return context

        assert torch.equal(attend(1), attend(1))
        assert not torch.equal(attend(1), attend(2))

    def test_of_arrays_is_numpys(self) -> None:
        x = normal(2, 30, 8)

        def attend(seed: int) -> np.ndarray:
            np.random.seed(seed)
            context: np.ndarray = regard.attention(x, x, x, dropout=0.5)
            return context

        assert np.array_equal(attend(1), attend(1))
        assert not np.array_equal(attend(1), attend(2))

    def test_is_drawn_for_every_call(self) -> None:
        x = normal(2, 30, 8)
        np.random.seed(0)
        first, second = (regard.attention(x, x, x, dropout=0.5) for _ in range(2))
        assert not np.array_equal(first, second)


def test_a_plan_draws_nothing() -> None:
    x = torch.from_numpy(normal(2, 30, 8))
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    regard.plan(x, x, x, dropout=0.5)
    assert torch.equal(torch.rand(1), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stays_is_scaled_up(backend: str) -> None:
    x = np.ones((4, 2), np.float32)
    np.random.seed(0)
    context = regard.attention(x, x, x, dropout=0.9, backend=backend)
    assert set(np.unique(context.round(4))) <= {0.0, 2.5, 5.0, 7.5, 10.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_observed_is_meant_before_it(backend: str) -> None:
    x = normal(1, 9, 4)
    everything = regard.Observe(lse=True, entropy=True, received="all", map=(3, 3), top=2)
    _, clean = regard.attention(x, x, x, observe=everything, backend=backend)
    _, dropped = regard.attention(x, x, x, observe=everything, dropout=0.5, backend=backend)
    wanted: list[np.ndarray] = []
    clean.each(wanted.append)
    dropped.each(lambda seen: np.testing.assert_array_equal(seen, wanted.pop(0)))


def test_gradients_pass_gradcheck() -> None:
    inputs = [torch.from_numpy(normal(2, 3, 4, seed=n, dtype=np.float64)) for n in range(3)]

    def attend(*arrays: torch.Tensor) -> Any:
        torch.manual_seed(3)
        return regard.attention(*arrays, dropout=0.4, backend="native")

    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in inputs])
