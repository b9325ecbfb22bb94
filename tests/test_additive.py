"""The additive score in every backend, and the kernels' tanh, which is nearly all of its cost."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, SMALL, Case, cases
from test_backends import ALL, agrees
from test_gradients import LSE, MASKS, TOLERANCE, assert_close, weighed
from threadpoolctl import threadpool_limits

import regard
from benchmarks import memory

every_backend = pytest.mark.parametrize("backend", [x for x in ALL if x.values != ("reference",)])


@st.composite
def additive_cases(draw: Any, **options: Any) -> Case:
    """A case of any kind, with the additive score."""
    case: Case = draw(cases(**options))
    heads, d = case.query.shape[-3], case.query.shape[-1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    vector = rng.normal(size=draw(st.sampled_from([(d,), (heads, d)]))).astype(dtype)
    case.options["score"] = regard.additive(vector)
    return case


@given(case=additive_cases())
def test_kernels_agree_with_the_reference(case: Case) -> None:
    agrees("native", case)


@pytest.mark.once
@given(case=additive_cases(sizes=SMALL))
def test_blockwise_agrees_with_the_reference(case: Case) -> None:
    agrees("blockwise", case)


@every_backend
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("L", "S"), [(1, 700), (2, 300), (150, 333)])
def test_long_rows_agree_with_the_reference(backend: str, dtype: str, L: int, S: int) -> None:
    rng = np.random.default_rng(L)
    arrays = (rng.normal(size=(1, heads, n, 64)) for heads, n in ((4, L), (2, S), (2, S)))
    query, key, value = (x.astype(DTYPES[dtype]) for x in arrays)
    options = {
        "mask": regard.causal("end") & regard.window(400) | regard.lengths(3),
        "sinks": np.float32([0, 1, -np.inf, 3]),
        "softcap": 20.0,
        "score": regard.additive(rng.normal(size=(4, 64))),
    }
    observe = regard.Observe(lse=True, entropy=True, peak=True, top=9, received=9, map=(1, 7))
    agrees(backend, Case(query, key, value, options, observe))


def test_the_reference_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    query, key, value, vector = (rng.normal(size=s) for s in ((5, 3), (7, 3), (7, 2), 3))
    scores = (np.tanh(query[:, None] + key) * vector).sum(axis=-1)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    score = regard.additive(vector)
    got = regard.attention(query, key, value, score=score, backend="reference")
    np.testing.assert_allclose(got, weights @ value, rtol=1e-13)
    np.testing.assert_allclose(regard.weights(query, key, score=score), weights, rtol=1e-13)


def bent(x: np.ndarray) -> np.ndarray:
    """tanh of the kernels: the log-sum-exp of one key is its score."""
    query = x.reshape(-1, 1)
    key, score = np.zeros((1, 1), x.dtype), regard.additive(np.ones(1, x.dtype))
    _, seen = regard.attention(query, key, key, score=score, observe=LSE, backend="native")
    return np.asarray(seen.lse)


class TestTanh:
    """Stated in kernels/vector.h: 2e-7 relative in float32, and never beyond 1."""

    @pytest.mark.parametrize(("kind", "bound"), [(np.float32, 2e-7), (np.float64, 4e-16)])
    def test_error(self, kind: Any, bound: float) -> None:
        size = np.concatenate([np.geomspace(1e-30, 0.01, 50_000), np.linspace(0.01, 25, 400_000)])
        x = np.concatenate([size, -size]).astype(kind)
        want = np.tanh(x.astype(np.longdouble))
        assert float(abs(bent(x) / want - 1).max()) <= bound
        assert abs(bent(x)).max() == 1

    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_of_what_is_no_usual_number(self, kind: Any) -> None:
        limits = np.finfo(kind)
        x = [0.0, np.inf, -np.inf, limits.max, -limits.max, limits.smallest_subnormal, np.nan]
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(bent(np.array(x, kind)), np.tanh(np.array(x, kind)))

    def test_the_comparison_can_fail(self) -> None:
        x = np.linspace(0.01, 5, 1000).astype(np.float32)
        assert abs(bent(x * np.float32(1 + 1e-6)) / np.tanh(x.astype(float)) - 1).max() > 2e-7


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": -0.3},
    "bias": {"bias": regard.alibi([0.1, 0.2, 0.3, 0.4])},
    "dropout": {"dropout": 0.3},
}


def inputs(
    dtype: torch.dtype, L: int = 150, S: int = 140, d: int = 20, heads: int = 4
) -> list[torch.Tensor]:
    """Query, key, value, vector and sinks."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 4, L, d), (2, 2, S, d), (2, 2, S, 24), (heads, d)[-heads:], (4,)]
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def gradients(arrays: list[torch.Tensor], backend: str, **options: Any) -> list[torch.Tensor]:
    query, key, value, vector, sinks = arrays
    options |= {"sinks": sinks, "score": regard.additive(vector)}
    torch.manual_seed(0)
    found = regard.attention(query, key, value, observe=LSE, backend=backend, **options)
    return list(torch.autograd.grad(weighed(*found), arrays))


def by_autograd(arrays: list[torch.Tensor], hidden: torch.Tensor) -> list[torch.Tensor]:
    query, key, value, vector, sinks = arrays
    key, value = (x.repeat_interleave(2, -3) for x in (key, value))
    bent = torch.tanh(query[..., :, None, :] + key[..., None, :, :])
    scores = (bent * vector[..., None, None, :]).sum(-1).masked_fill(hidden, -torch.inf)
    more = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    context = more.softmax(-1)[..., :-1] @ value
    found = weighed(context, regard.Observation(lse=more.logsumexp(-1)))
    return list(torch.autograd.grad(found, arrays))


class TestGradients:
    @every_backend
    @pytest.mark.parametrize("heads", [1, 4])
    def test_are_those_of_the_formula(self, backend: str, heads: int) -> None:
        arrays = inputs(torch.float64, 30, 40, 7, heads)
        hidden = ~torch.ones(30, 40, dtype=torch.bool).tril(10)
        got = gradients(arrays, backend, mask=regard.causal(10))
        assert_close(got, by_autograd(arrays, hidden), 1e-13)

    @staticmethod
    def check(
        dtype: torch.dtype, arrays: list[torch.Tensor], room: float = 1.0, **options: Any
    ) -> None:
        """The kernels against blockwise in float64."""
        exact = [x.detach().double().requires_grad_() for x in arrays]
        got = gradients(arrays, "native", **options)
        assert [x.dtype for x in got] == [dtype] * len(got)
        assert_close(got, gradients(exact, "blockwise", **options), room * TOLERANCE[dtype])

    @pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
    def test_under_every_mask(self, mask: Any) -> None:
        self.check(torch.float32, inputs(torch.float32), mask=mask)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_with_every_option(self, options: dict[str, Any]) -> None:
        self.check(torch.float32, inputs(torch.float32), mask=regard.causal(), **options)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("d", [1, 64, 70])
    def test_in_every_dtype_and_width(self, dtype: torch.dtype, d: int) -> None:
        self.check(dtype, inputs(dtype, 33, 50, d))

    @pytest.mark.parametrize(("L", "S"), [(1, 1), (1, 300), (3, 5), (65, 1), (0, 5), (5, 0)])
    def test_with_any_lengths(self, L: int, S: int) -> None:
        # With one row a sink's gradient is the small difference of two numbers: the formula in
        # float32 is wrong by 1.1e-6 there, and the kernels by up to 2.6e-6.
        self.check(torch.float32, inputs(torch.float32, L, S), room=2.5 if L == 1 else 1.0)

    def test_beside_that_of_a_bias(self) -> None:
        query, key, value, vector, _ = inputs(torch.float64, 30, 40, 7)
        bias = torch.zeros(30, 40, dtype=torch.float64, requires_grad=True)
        found = []
        for backend in ("native", "blockwise"):
            context = regard.attention(
                query, key, value, bias=bias, score=regard.additive(vector), backend=backend
            )
            found.append(torch.autograd.grad(context.sin().sum(), (bias, vector)))
        assert_close(list(found[0]), list(found[1]), 1e-13)

    @pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
    @every_backend
    def test_of_hidden_keys_are_zero_whatever_they_hold(self, backend: str, garbage: float) -> None:
        clean, mask = inputs(torch.float32), regard.lengths(101)
        dirty = [x.detach().clone() for x in clean]
        for x in dirty[1:3]:
            x[:, :, 101:] = garbage
        got = gradients([x.requires_grad_() for x in dirty], backend, mask=mask)
        assert_close(got, gradients(clean, backend, mask=mask), 1e-6)
        assert not got[1][:, :, 101:].any()

    def test_have_the_same_bits_for_any_number_of_threads(self) -> None:
        found = []
        for threads in (1, 2, 3, 8):
            with threadpool_limits(threads, user_api="openmp"):
                found.append(gradients(inputs(torch.float32, 300), "native", mask=MASKS["none"]))
        assert all(
            torch.equal(x, y) for other in found[1:] for x, y in zip(other, found[0], strict=True)
        )

    def test_of_a_vector_in_numpy_are_none(self) -> None:
        query, key, value, vector, _ = inputs(torch.float32, 5, 6, 7)
        score = regard.additive(vector.detach().numpy())
        context = regard.attention(query, key, value, score=score)
        want = regard.attention(query, key, value, score=regard.additive(vector))
        assert torch.equal(*(torch.autograd.grad(x.sin().sum(), query)[0] for x in (context, want)))


@every_backend
def test_tanh_of_every_pair_is_never_stored(backend: str) -> None:
    """It would take 411 MB here; blockwise has pieces of 8 MB, of which malloc keeps some."""

    def call(L: int, d: int) -> None:
        arrays = [torch.randn(1, L, n).requires_grad_() for n in (d, d, 8)]
        score = regard.additive(torch.ones(d, requires_grad=True))
        regard.attention(*arrays, score=score, backend=backend).sum().backward()

    call(8, 8)
    before = memory.resident()
    assert memory.peak(lambda: call(224, 2048))[0] - before < 160_000_000


def test_the_plan_names_it() -> None:
    query, key, value, vector, _ = (x.detach() for x in inputs(torch.float32, 1, 64, 64))
    score = regard.additive(vector)
    assert "additive score, decoding" in regard.plan(query, key, value, score=score).kernel
    many = torch.zeros(2, 4, 99, 64)
    assert "additive score, streaming" in regard.plan(many, key, value, score=score).kernel
