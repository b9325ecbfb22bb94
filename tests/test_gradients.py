"""Gradients of the kernels against blockwise's in float64, which are tested against autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import regard

LSE = regard.Observe(lse=True)

# The kernels' own error: relative, in the Frobenius norm, over a whole gradient.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}

MASKS = {
    "none": None,
    "causal": regard.causal(),
    "end": regard.causal("end"),
    "window": regard.causal() & regard.window(20),
    "lengths": regard.lengths([0, 130]),
    "documents": regard.documents(np.arange(150) // 40, np.arange(140) // 40),
    "dense": np.random.default_rng(0).random((2, 1, 150, 140)) < 0.3,
    "sparse rows": regard.padding(np.ones(140, bool), np.arange(150) % 3 > 0),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.3},
    "sinks": {"sinks": True},
    "alibi": {"bias": regard.alibi([0.1, 0.2, 0.3, 0.4])},
    "dense bias": {"bias": np.random.default_rng(1).standard_normal((4, 150, 140))},
    "dropout": {"dropout": 0.3},
    "all": {
        "softcap": 3.0,
        "sinks": True,
        "bias": regard.alibi([0.1, 0.0, 0.3, 0.4]),
        "dropout": 0.1,
    },
}
# Of biases that are learned, over 2 x 4 heads, 150 queries and 140 keys.
BIASES = {
    "one": (1,),
    "per key": (140,),
    "per query": (150, 1),
    "per head": (4, 1, 1),
    "per head and key": (4, 1, 140),
    "shared": (150, 140),
    "shared by heads": (2, 1, 150, 140),
    "shared by the batch": (4, 150, 140),
    "of its own": (2, 4, 150, 140),
}


def inputs(dtype: torch.dtype, *, sinks: bool = False, d_v: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 4, 150, 40), (2, 2, 140, 40), (2, 2, 140, d_v), *([(4,)] if sinks else [])]
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def gradients(
    arrays: list[torch.Tensor], backend: str, mask: Any, **options: Any
) -> list[torch.Tensor]:
    """Of query, key, value and sinks, through the context and the lse. Dropout is seeded."""
    query, key, value, *sinks = arrays
    if sinks:
        options["sinks"] = sinks[0]
    torch.manual_seed(0)
    context, seen = regard.attention(
        query, key, value, mask=mask, observe=LSE, backend=backend, **options
    )
    return list(torch.autograd.grad(weighed(context, seen), arrays))


def weighed(context: torch.Tensor, seen: regard.Observation) -> torch.Tensor:
    towards = torch.linspace(-1, 1, context.numel()).reshape(context.shape).cos()
    assert seen.lse is not None
    lse = seen.lse.masked_fill(~seen.lse.isfinite(), 0)
    return (context * towards).sum() + lse.sin().sum()


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor], tolerance: float) -> None:
    for x, y in zip(got, want, strict=True):
        error = (x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30)
        assert error <= tolerance


def check(dtype: torch.dtype, mask: Any, options: dict[str, Any], d_v: int = 48) -> None:
    options = dict(options)
    arrays = inputs(dtype, sinks=options.pop("sinks", False), d_v=d_v)
    exact = [x.detach().double().requires_grad_() for x in arrays]
    want = gradients(exact, "blockwise", mask, **options)
    got = gradients(arrays, "native", mask, **options)
    assert [x.dtype for x in got] == [dtype] * len(got)
    assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_under_every_mask(dtype: torch.dtype, mask: Any) -> None:
    check(dtype, mask, {})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_with_every_option(dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(dtype, regard.causal(), options)


@pytest.mark.parametrize("d_v", [1, 16, 70, 130])
def test_with_any_width_of_values(d_v: int) -> None:
    check(torch.float32, regard.causal(), {}, d_v)


@pytest.mark.parametrize(("L", "S"), [(1, 1), (1, 300), (3, 200), (65, 1), (0, 5), (5, 0)])
def test_with_any_lengths(L: int, S: int) -> None:
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.randn(2, n, 16, generator=generator) for n in (L, S, S)]
    exact = [x.double().requires_grad_() for x in arrays]
    got = gradients([x.requires_grad_() for x in arrays], "native", None)
    assert_close(got, gradients(exact, "blockwise", None), TOLERANCE[torch.float32])


class TestOfALearnedBias:
    """Beside those of query, key and value, which do not change."""

    def check(self, dtype: torch.dtype, learned: torch.Tensor, bias: Any, **options: Any) -> None:
        found = []
        for backend, kind in (("native", dtype), ("blockwise", torch.float64)):
            parameter = learned.to(kind).requires_grad_()
            arrays = [x.detach().to(kind).requires_grad_() for x in inputs(dtype)]
            torch.manual_seed(0)
            context, seen = regard.attention(
                *arrays, bias=bias(parameter), observe=LSE, backend=backend, **options
            )
            found.append(torch.autograd.grad(weighed(context, seen), [parameter, *arrays]))
        got, want = found
        assert got[0].shape == learned.shape
        assert [x.dtype for x in got] == [dtype] * 4
        assert_close(got, want, TOLERANCE[dtype])

    @pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_of_any_shape(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        learned = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        self.check(dtype, learned.to(dtype), lambda x: x, mask=regard.causal())

    def test_that_masks(self) -> None:
        learned = torch.randn(150, 140, generator=torch.Generator().manual_seed(4))
        learned[:, ::3] = -torch.inf
        self.check(torch.float32, learned, lambda x: x)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_of_every_dtype(self, dtype: torch.dtype) -> None:
        learned = torch.randn(4, 150, 140, generator=torch.Generator().manual_seed(4)).to(dtype)
        self.check(dtype, learned, lambda x: x)

    def test_with_softcap_and_dropout(self) -> None:
        learned = torch.randn(150, 140, generator=torch.Generator().manual_seed(4))
        self.check(torch.float32, learned, lambda x: x, softcap=2.0, dropout=0.2)

    def test_of_slopes(self) -> None:
        self.check(torch.float32, torch.tensor([0.1, 0.2, 0.3, 0.4]), regard.alibi)

    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_of_a_table_by_distance(self, bidirectional: bool) -> None:
        table = torch.randn(16, 4, generator=torch.Generator().manual_seed(4))

        def bias(x: torch.Tensor) -> Any:
            return regard.relative(x, bidirectional=bidirectional, max_distance=60)

        self.check(torch.float32, table, bias, mask=regard.causal())

    def test_has_the_same_bits_for_any_number_of_threads(self) -> None:
        query, key, value = (x.detach() for x in inputs(torch.float32))
        bias = torch.zeros(140, requires_grad=True)
        found = []
        for threads in (1, 2, 3, 8):
            with threadpool_limits(threads, user_api="openmp"):
                context = regard.attention(query, key, value, bias=bias, backend="native")
                found.append(torch.autograd.grad(context.cos().sum(), bias)[0])
        assert all(torch.equal(x, found[0]) for x in found[1:])

    def test_changed_in_place_is_noticed(self) -> None:
        bias = torch.zeros(150, 140, requires_grad=True)
        held = bias * 1.0
        context = regard.attention(*inputs(torch.float32), bias=held, backend="native")
        held.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            context.sum().backward()


def test_pass_gradcheck() -> None:
    arrays = [x.detach()[:1, :, :7].clone().requires_grad_() for x in inputs(torch.float64)]
    sinks = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)

    def attend(*x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        context, seen = regard.attention(
            *x[:3], sinks=x[3], softcap=5.0, mask=regard.causal(), observe=LSE, backend="native"
        )
        return context, seen.lse

    assert torch.autograd.gradcheck(attend, (*arrays, sinks))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_of_hidden_keys_are_zero_whatever_they_hold(garbage: float) -> None:
    clean = inputs(torch.float32)
    want = gradients(clean, "native", regard.lengths(100))
    with torch.no_grad():
        dirty = [x.clone() for x in clean]
        for x in dirty[1:]:
            x[:, :, 100:] = garbage
    got = gradients([x.requires_grad_() for x in dirty], "native", regard.lengths(100))
    assert_close(got, want, 1e-6)
    assert not got[1][:, :, 100:].any()
    assert not got[2][:, :, 100:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_have_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 1, 2, 700, 64, generator=generator).to(dtype)
    arrays = [x.clone().requires_grad_() for x in numbers]
    found = []
    for threads in (1, 2, 3, 8):
        with threadpool_limits(threads, user_api="openmp"):
            found.append(gradients(arrays, "native", regard.causal()))
    assert all(
        torch.equal(x, y) for other in found[1:] for x, y in zip(other, found[0], strict=True)
    )


def test_refuse_a_second_derivative() -> None:
    query, key, value = inputs(torch.float32)
    context = regard.attention(query, key, value, backend="native")
    (gradient,) = torch.autograd.grad(context.sum(), query, create_graph=True)
    with pytest.raises(regard.BackendError, match="no second derivative"):
        gradient.sum().backward()


def test_reach_the_kernels_without_asking() -> None:
    assert regard.plan(*inputs(torch.float32)).backend == "native"


class TestWhatIsHidden:
    """Neither side of a hidden pair reaches the other's gradient, whatever it holds."""

    @staticmethod
    def of(backend: str, arrays: list[torch.Tensor], towards: Any, **options: Any) -> Any:
        arrays = [x.clone().requires_grad_() for x in arrays]
        context = regard.attention(*arrays, backend=backend, **options)
        return torch.autograd.grad(context, arrays, towards(context))

    def check(self, arrays: list[torch.Tensor], towards: Any, live: Any, **options: Any) -> None:
        got = self.of("native", arrays, towards, **options)
        want = self.of("blockwise", arrays, towards, **options)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x[:, live], y[:, live], rtol=1e-5, atol=1e-6)
            assert x[:, live].isfinite().all()

    def test_queries_that_are_padding(self) -> None:
        arrays = [
            torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1, 2)
        ]
        arrays[0][:, 7:] = torch.nan
        real = np.arange(9) < 7

        def towards(context: torch.Tensor) -> torch.Tensor:
            upstream = torch.ones_like(context)
            upstream[:, 7:] = torch.nan
            return upstream

        mask = regard.padding(np.ones(9, bool), real)
        self.check(arrays, towards, slice(0, 7), mask=mask)

    def test_keys_behind_a_bias(self) -> None:
        arrays = [
            torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1, 2)
        ]
        bias = torch.zeros(7)
        bias[:3], arrays[1][:, :3], arrays[2][:, :3] = -torch.inf, torch.nan, torch.nan
        self.check(arrays, torch.ones_like, slice(None), bias=bias)


def test_take_an_upstream_gradient_that_is_lazily_negative() -> None:
    context = regard.attention(*(arrays := inputs(torch.float32)), backend="native")
    ones = torch.ones_like(context).detach()
    negative = torch.complex(0 * ones, ones).conj().imag
    got = torch.autograd.grad(context, arrays[2], negative, retain_graph=True)[0]
    want = torch.autograd.grad(context, arrays[2], -ones)[0]
    assert negative.is_neg()
    torch.testing.assert_close(got, want)
