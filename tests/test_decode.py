"""A few queries against many keys: a kernel of its own, cut at other places than the rest."""

from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import regard

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": np.array([0.5, -1.0, 2.0, -np.inf])},
    "alibi": {"bias": regard.alibi([0.01, 0.02, 0.03, 0.04], offset="end")},
    "dense bias": {"bias": np.random.default_rng(1).standard_normal((4, 1, 1200))},
    "a bias that hides": {"bias": np.where(np.arange(1200) % 3, 0.0, -np.inf)},
}
MASKS = {
    "none": None,
    "causal": regard.causal("end"),
    "window": regard.causal("end") & regard.window(300, offset="end"),
    "lengths": regard.lengths([0, 700]),
    "padding": regard.padding(np.arange(1200) >= np.array([[513], [3]])),
    "dense": np.random.default_rng(0).random((2, 4, 1, 1200)) < 0.3,
    "nothing": np.zeros((1, 1200), bool),
}


def everything(S: int) -> regard.Observe:
    return regard.Observe(
        lse=True,
        entropy=True,
        peak=True,
        top=min(S, 5),
        received="all",
        map=(1, min(S, 9)),
        sink=True,
    )


DTYPES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def inputs(L: int = 1, S: int = 1200, d: int = 64, d_v: int = 96, group: int = 2) -> list[Any]:
    generator = torch.Generator().manual_seed(L + S)
    shapes = [(2, 2 * group, L, d), (2, 2, S, d), (2, 2, S, d_v)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def check(arrays: list[Any], dtype: torch.dtype, **options: Any) -> None:
    rounded = [x.to(dtype) for x in arrays]
    observe = everything(arrays[1].shape[-2])
    got, seen = regard.attention(*rounded, observe=observe, backend="native", **options)
    exact = [x.double() for x in rounded]
    want, expected = regard.attention(*exact, observe=observe, backend="reference", **options)
    error = (got.double() - want).norm() / want.norm().clamp_min(1e-30)
    assert error <= DTYPES[dtype]
    wanted: list[Any] = []
    expected.each(wanted.append)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    seen.each(
        lambda x: torch.testing.assert_close(
            x.double(), wanted.pop(0).double(), rtol=tolerance, atol=tolerance
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_every_option(dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(inputs(), dtype, mask=regard.causal("end"), **options)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_under_every_mask(mask: Any) -> None:
    check(inputs(), torch.float32, mask=mask)


@pytest.mark.parametrize("L", [1, 2, 4, 5, 8, 9])
@pytest.mark.parametrize("group", [1, 2])
def test_on_both_sides_of_a_few(L: int, group: int) -> None:
    check(inputs(L, group=group), torch.float32, mask=regard.causal("end"))


@pytest.mark.parametrize("S", [1, 7, 63, 65, 255, 256, 257, 513])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_any_number_of_keys(S: int, dtype: torch.dtype) -> None:
    check(inputs(1, S), dtype)


@pytest.mark.parametrize(("d", "d_v"), [(16, 16), (32, 208), (128, 0), (48, 33), (20, 64)])
def test_with_any_width(d: int, d_v: int) -> None:
    check(inputs(d=d, d_v=d_v), torch.float32)


def test_reads_a_cache_in_place() -> None:
    """Positions outermost, heads inside, and room for more keys behind."""
    query, key, value = (x.float() for x in inputs())
    caches = []
    for x in (key, value):
        room = torch.full((2000, 2, 2, x.shape[-1]), torch.nan)
        room[:1200] = x.permute(2, 0, 1, 3)
        caches.append(room[:1200].permute(1, 2, 0, 3))
    assert torch.equal(
        regard.attention(query, *caches, backend="native"),
        regard.attention(query, key, value, backend="native"),
    )


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_a_hidden_key_gives_nothing_whatever_it_holds(garbage: float) -> None:
    query, key, value = (x.float() for x in inputs())
    want = regard.attention(query, key, value, mask=regard.lengths(700), backend="native")
    key[:, :, 700:], value[:, :, 700:] = garbage, garbage
    got = regard.attention(query, key, value, mask=regard.lengths(700), backend="native")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_a_visible_nan_is_seen() -> None:
    query, key, value = (x.float() for x in inputs())
    key[0, 0, 900] = torch.nan
    context = regard.attention(query, key, value, backend="native")
    assert context[0, :2].isnan().all()
    assert context[0, 2:].isfinite().all()


def test_the_context_keeps_its_bits_whatever_is_observed() -> None:
    arrays = [x.float() for x in inputs()]
    context, _ = regard.attention(*arrays, observe=everything(1200), backend="native")
    assert torch.equal(context, regard.attention(*arrays, backend="native"))


def test_the_same_bits_on_any_number_of_threads() -> None:
    arrays = [x.float() for x in inputs(S=9000)]
    found = []
    for threads in (1, 2, 3, 8):
        with threadpool_limits(threads, user_api="openmp"):
            found.append(regard.attention(*arrays, backend="native"))
    assert all(torch.equal(x, found[0]) for x in found[1:])


def test_the_same_bits_in_any_batch() -> None:
    query, key, value = (x.float() for x in inputs())
    whole = regard.attention(query, key, value, backend="native")
    alone = regard.attention(query[1:, 2:], key[1:, 1:], value[1:, 1:], backend="native")
    assert torch.equal(whole[1:, 2:], alone)


def test_the_same_bits_whatever_other_rows_see() -> None:
    mask = regard.causal("end") & regard.window(101, offset="end")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        query, key, value = (torch.randn(1, n, 32, generator=generator) for n in (4, 300, 300))
        several = regard.attention(query, key, value, mask=mask, backend="native")
        alone = regard.attention(query[:, 3:], key, value, mask=mask, backend="native")
        assert torch.equal(several[:, 3:], alone)


@pytest.mark.parametrize("L", [0, 1])
def test_without_queries(L: int) -> None:
    query, key, value = (torch.ones(1, n, 32) for n in (L, 300, 300))
    assert regard.attention(query, key, value, mask=regard.causal(), backend="native").shape[1] == L


def test_the_sink_of_a_row_that_is_nan_is_nan() -> None:
    query, key, value = (x.float() for x in inputs())
    key[0, 0, 5] = torch.inf
    _, seen = regard.attention(
        query, key, value, sinks=torch.zeros(4), observe=everything(1200), backend="native"
    )
    assert seen.sink[0, :2].isnan().all()


def test_is_what_the_plan_says() -> None:
    query, key, value = inputs()
    assert "decoding in float64" in regard.plan(query, key, value).kernel
    assert "streaming softmax" in regard.plan(query, key.mT.contiguous().mT, value).kernel
    many = torch.zeros(2, 4, 20, 64, dtype=torch.float64)
    assert "streaming softmax" in regard.plan(many, key, value).kernel
