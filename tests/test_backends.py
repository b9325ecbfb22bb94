"""Every backend against the reference, over everything that can be asked."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import DTYPES, SMALL, Case, cases, laid_out

import regard
from regard._backends import NAMES
from regard._backends.reference import Rows
from regard._problem import make_problem

# Only the kernels differ from one instruction set to the next.
ALL = [pytest.param(x, marks=[] if x == "native" else pytest.mark.once) for x in NAMES]
every_backend = pytest.mark.parametrize("backend", [x for x in ALL if x.values != ("reference",)])

# Half the distance between 1 and the next number.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
EVERYTHING = regard.Observe(
    lse=True,
    entropy=True,
    peak=True,
    top=3,
    received="all",
    map=(3, 2),
    spans=(None, [(0, 2), (1, 3)]),
    sink=True,
)


class Expected:
    """What the reference says about a case, in float64, and how near others must come to it.

    A score is rounded relative to the sum of its products' sizes, a weight relative to its score's
    error, and everything else follows from the weights. `slack` is that error of a weight,
    relative to it, with room for a few roundings more.
    """

    def __init__(self, case: Case) -> None:
        exact = case.exact()
        self.problem = make_problem(*exact, **case.options)
        with np.errstate(all="ignore"):
            self.rows = Rows.of(self.problem)
        self.context, self.seen = regard.attention(
            *exact, **case.options, observe=case.observe, backend="reference"
        )
        self.dtype = case.query.dtype.name
        computed = "float64" if self.dtype == "float64" else "float32"
        scores = self.rows.scores[np.isfinite(self.rows.scores)]
        sizes = [np.sqrt((x**2).sum(axis=-1)).max(initial=0) for x in exact[:2]]
        reach = abs(self.problem.scale) * sizes[0] * sizes[1] + abs(scores).max(initial=0)
        # Equal numbers, added one by one, are rounded to the same side each time.
        drift = max(self.problem.L, self.problem.S) / 2
        self.slack = ROUNDING[computed] * (16 + 4 * reach + drift)

    def check_context(self, context: np.ndarray) -> None:
        value = np.asarray(self.problem.value)
        rounding = ROUNDING[self.dtype] if context.dtype.itemsize == 2 else 0.0
        near = (2 * self.slack + rounding) * abs(value).max(initial=1)
        assert context.shape == self.context.shape
        np.testing.assert_allclose(context.astype(np.float64), self.context, rtol=0, atol=near)

    def check(self, seen: regard.Observation) -> None:
        for name, value in vars(self.seen).items():
            got = getattr(seen, name)
            assert (got is None) == (value is None), name
            if value is not None:
                getattr(self, name)(got, value)

    def near(self, got: np.ndarray, want: np.ndarray, slack: float) -> None:
        assert got.dtype == (np.float64 if self.dtype == "float64" else np.float32)
        np.testing.assert_allclose(got, want, rtol=slack, atol=slack)

    def lse(self, got: np.ndarray, want: np.ndarray) -> None:
        self.near(got, want, self.slack)

    def entropy(self, got: np.ndarray, want: np.ndarray) -> None:
        # The mean of numbers as large as the range of the scores.
        scores = self.rows.scores[np.isfinite(self.rows.scores)]
        self.near(got, want, self.slack * (4 + np.ptp(scores) if scores.size else 4))

    def sink(self, got: np.ndarray, want: np.ndarray) -> None:
        self.near(got, want, self.slack)

    def received(self, got: np.ndarray, want: np.ndarray) -> None:
        self.near(got, want, self.slack * math.sqrt(1 + self.problem.L))

    def map(self, got: np.ndarray, want: np.ndarray) -> None:
        self.near(got, want, 2 * self.slack)

    def spans(self, got: np.ndarray, want: np.ndarray) -> None:
        self.near(got, want, 2 * self.slack)

    def peak(self, got: regard._observation.Peak, want: regard._observation.Peak) -> None:
        self.near(got.weight, want.weight, self.slack)
        self.keys_weigh(got.key[..., None], got.weight[..., None])
        np.testing.assert_array_equal(got.key == -1, want.key == -1)

    def top(self, got: regard._observation.Top, want: regard._observation.Top) -> None:
        self.near(got.weights, want.weights, self.slack)
        self.keys_weigh(got.keys, got.weights)
        np.testing.assert_array_equal(got.keys == -1, want.keys == -1)
        ordered = np.sort(np.where(got.keys == -1, -1 - np.arange(got.keys.shape[-1]), got.keys))
        assert (np.diff(ordered) > 0).all(), "a key is listed twice"

    def keys_weigh(self, keys: np.ndarray, weights: np.ndarray) -> None:
        """The keys have these weights: two keys of nearly the same weight may change places."""
        if self.problem.S:
            found = np.take_along_axis(self.rows.weights, np.maximum(keys, 0), axis=-1)
            self.near(weights, np.where(keys == -1, 0, found), self.slack)


def agrees(backend: str, case: Case) -> None:
    expected = Expected(case)
    context, seen = regard.attention(
        *case.arrays, **case.options, observe=case.observe, backend=backend
    )
    assert context.dtype == case.query.dtype
    expected.check_context(context)
    expected.check(seen)


@every_backend
@given(case=cases())
def test_it_agrees_with_the_reference(backend: str, case: Case) -> None:
    agrees(backend, case)


@every_backend
@given(case=cases(sizes=SMALL))
def test_small_sizes_agree_with_the_reference(backend: str, case: Case) -> None:
    agrees(backend, case)


@every_backend
@given(case=cases(dtypes=("float32",)))
def test_what_is_observed_does_not_change_the_context(backend: str, case: Case) -> None:
    plain = regard.attention(*case.arrays, **case.options, backend=backend)
    watched, _ = regard.attention(
        *case.arrays, **case.options, observe=case.observe, backend=backend
    )
    np.testing.assert_array_equal(plain, watched)


@every_backend
@given(case=cases(dtypes=("float32",)))
def test_weights_are_observed_without_a_value(backend: str, case: Case) -> None:
    whole = regard.weights(*case.arrays[:2], **case.options, backend=backend)
    expected = Expected(case)
    expected.near(whole.lse(), expected.rows.lse, expected.slack)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("L", "S"), [(1, 1024), (257, 1), (128, 1025), (300, 700)])
def test_long_rows_agree_with_the_reference(backend: str, dtype: str, L: int, S: int) -> None:
    rng = np.random.default_rng(L)
    arrays = (rng.normal(size=(1, heads, n, 64)) for heads, n in ((4, L), (2, S), (2, S)))
    query, key, value = (x.astype(DTYPES[dtype]) for x in arrays)
    mask = regard.causal("end") & regard.window(400) | regard.lengths(3)
    observe = regard.Observe(
        lse=True, entropy=True, peak=True, top=min(64, S), received=9, map=(1, min(7, S)), sink=True
    )
    sinks = np.float32([0, 1, -np.inf, 3])
    case = Case(query, key, value, {"mask": mask, "sinks": sinks, "softcap": 20.0}, observe)
    agrees(backend, case)


@every_backend
@pytest.mark.parametrize("causal", [False, True])
def test_float32_is_as_exact_as_pytorch(backend: str, causal: bool) -> None:
    """At most twice the error of PyTorch's own operator, or 2e-6 where it is better than that."""
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=(2, 4, 512, 64)).astype(np.float32) for _ in range(3)]
    mask = regard.causal() if causal else None
    exact = [x.astype(np.float64) for x in arrays]
    want = regard.attention(*exact, mask=mask, backend="reference")
    tensors = [torch.from_numpy(x) for x in arrays]
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal).numpy()
    ours = regard.attention(*arrays, mask=mask, backend=backend)

    def error(x: np.ndarray) -> float:
        return float(np.linalg.norm(x - want) / np.linalg.norm(want))

    assert error(ours) <= max(2e-6, 2 * error(theirs))


@every_backend
@pytest.mark.parametrize("layout", ["contiguous", "heads inside", "transposed", "gaps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_tensors_of_any_layout(backend: str, dtype: torch.dtype, layout: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [laid_out(rng.normal(size=(2, 3, 20, 16)).astype("f"), layout) for _ in range(3)]
    tensors = [torch.from_numpy(x).to(dtype) for x in arrays]
    exact = [x.double().numpy() for x in tensors]
    got = regard.attention(*tensors, backend=backend)
    assert got.dtype == dtype
    near = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
    want = regard.attention(*exact, backend="reference")
    np.testing.assert_allclose(got.double().numpy(), want, rtol=0, atol=near[dtype])


@pytest.mark.parametrize("backend", ALL)
class TestTies:
    """Of equal weights the first key wins, and equal weights are listed by key."""

    def test_peak(self, backend: str) -> None:
        key = np.float32([[0], [2], [1], [2], [2]])
        _, seen = regard.attention(
            np.ones((3, 1), "f"), key, key, observe=regard.Observe(peak=True), backend=backend
        )
        np.testing.assert_array_equal(seen.peak.key, [1, 1, 1])

    def test_top(self, backend: str) -> None:
        key = np.float32([[0], [2], [1], [2], [2], [1]])
        _, seen = regard.attention(
            np.ones((1, 1), "f"), key, key, observe=regard.Observe(top=5), backend=backend
        )
        np.testing.assert_array_equal(seen.top.keys, [[1, 3, 4, 2, 5]])

    def test_top_of_many_equal_keys(self, backend: str) -> None:
        key = np.zeros((1000, 4), "f")
        mask = np.arange(1000) % 3 == 1
        _, seen = regard.attention(
            key[:2], key, key, mask=mask, observe=regard.Observe(top=5), backend=backend
        )
        np.testing.assert_array_equal(seen.top.keys, [[1, 4, 7, 10, 13]] * 2)


@pytest.mark.parametrize("backend", ALL)
class TestRowsThatSeeNothing:
    @pytest.fixture(params=[None, [0.5, -1.0]], ids=["no sinks", "sinks"])
    def case(self, request: Any, backend: str) -> tuple[np.ndarray, regard.Observation, Any]:
        rng = np.random.default_rng(0)
        query, key, value = (rng.normal(size=(2, n, 4)).astype("f") for n in (6, 5, 5))
        sinks = None if request.param is None else np.float32(request.param)
        mask = regard.padding(np.ones(5, bool), queries=np.arange(6) % 3 != 0)  # 0 and 3 see none
        context, seen = regard.attention(
            query, key, value, mask=mask, sinks=sinks, observe=EVERYTHING, backend=backend
        )
        return context, seen, request.param

    def test_the_context_is_zero(self, case: Any) -> None:
        assert (case[0][:, [0, 3]] == 0).all()
        assert (case[0][:, [1, 2, 4, 5]] != 0).all()

    def test_lse_is_the_sink_alone(self, case: Any) -> None:
        _, seen, sinks = case
        want = [-np.inf] * 2 if sinks is None else sinks
        np.testing.assert_array_equal(seen.lse[:, 0], np.float32(want))

    def test_the_sink_takes_it_all(self, case: Any) -> None:
        _, seen, sinks = case
        assert (seen.sink[:, [0, 3]] == (0 if sinks is None else 1)).all()

    def test_entropy_is_zero(self, case: Any) -> None:
        assert (case[1].entropy[:, [0, 3]] == 0).all()

    def test_there_is_no_peak(self, case: Any) -> None:
        assert (case[1].peak.key[:, [0, 3]] == -1).all()
        assert (case[1].peak.weight[:, [0, 3]] == 0).all()

    def test_top_is_empty(self, case: Any) -> None:
        assert (case[1].top.keys[:, [0, 3]] == -1).all()
        assert (case[1].top.weights[:, [0, 3]] == 0).all()

    def test_a_mean_leaves_them_out(self, case: Any) -> None:
        _, seen, _ = case
        mass = 1 - seen.sink  # of the rows that see something
        mean = np.stack([mass[:, 1], mass[:, 2], (mass[:, 4] + mass[:, 5]) / 2], axis=1)
        np.testing.assert_allclose(seen.map.sum(axis=-1), mean, rtol=1e-5)

    def test_a_bin_without_any_row_that_sees_is_zero(self, backend: str) -> None:
        x = np.ones((4, 2), "f")
        mask = regard.padding(np.ones(4, bool), queries=np.array([True, True, False, False]))
        _, seen = regard.attention(
            x, x, x, mask=mask, observe=regard.Observe(map=(2, 2)), backend=backend
        )
        np.testing.assert_allclose(seen.map, [[0.5, 0.5], [0, 0]])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", ALL)
class TestMaskedGarbage:
    """A masked key contributes nothing, whatever it holds."""

    def check(self, backend: str, garbage: float, hidden: Any, **options: Any) -> None:
        rng = np.random.default_rng(1)
        query, key, value = (rng.normal(size=(2, n, 8)).astype("f") for n in (40, 50, 50))
        clean, want = regard.attention(
            query, key, value, observe=EVERYTHING, backend=backend, **options
        )
        key[:, hidden], value[:, hidden] = garbage, garbage
        context, seen = regard.attention(
            query, key, value, observe=EVERYTHING, backend=backend, **options
        )
        # Not to the bit: a kernel may go another way where it meets garbage.
        np.testing.assert_allclose(context, clean, rtol=0, atol=1e-6)
        wanted: list[np.ndarray] = []
        want.each(wanted.append)
        seen.each(lambda x: np.testing.assert_allclose(x, wanted.pop(0), rtol=0, atol=3e-6))

    def test_behind_a_length(self, backend: str, garbage: float) -> None:
        self.check(backend, garbage, slice(33, 50), mask=regard.lengths(33))

    def test_behind_padding(self, backend: str, garbage: float) -> None:
        real = np.ones(50, bool)
        real[[0, 7, 31, 49]] = False
        self.check(backend, garbage, ~real, mask=regard.padding(real))

    def test_behind_a_dense_mask(self, backend: str, garbage: float) -> None:
        mask = np.arange(50) % 5 != 2
        self.check(backend, garbage, ~mask, mask=mask)

    def test_behind_a_bias_of_minus_infinity(self, backend: str, garbage: float) -> None:
        bias = np.where(np.arange(50) % 5 == 2, -np.inf, 0.0).astype("f")
        self.check(backend, garbage, bias == -np.inf, bias=bias)

    def test_ahead_of_some_rows_only(self, backend: str, garbage: float) -> None:
        """Rows before the garbage are untouched, rows that see it are not finite."""
        rng = np.random.default_rng(1)
        query, key, value = (rng.normal(size=(30, 8)).astype("f") for _ in range(3))
        clean = regard.attention(query, key, value, mask=regard.causal(), backend=backend)
        value[20] = garbage
        context = regard.attention(query, key, value, mask=regard.causal(), backend=backend)
        np.testing.assert_allclose(context[:20], clean[:20], rtol=0, atol=1e-6)
        assert not np.isfinite(context[20:]).any()

    def test_in_a_padded_query(self, backend: str, garbage: float) -> None:
        rng = np.random.default_rng(1)
        query, key, value = (rng.normal(size=(30, 8)).astype("f") for _ in range(3))
        real = np.arange(30) < 25
        mask = regard.padding(np.ones(30, bool), queries=real)
        query[~real] = garbage
        context, seen = regard.attention(
            query, key, value, mask=mask, observe=EVERYTHING, backend=backend
        )
        assert (context[25:] == 0).all()
        seen.each(lambda x: not np.isnan(x).any() or pytest.fail("NaN in a statistic"))
