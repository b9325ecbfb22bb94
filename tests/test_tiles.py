"""Products of bfloat16 by tiles, beyond what tests of every backend and gradient ask of them.

On a machine without AMX they run with REGARD_ISA=imitated, which `make test` does.
"""

from typing import Any

import pytest
import torch
from beside_torch import check, qkv, results, tensors
from hypothesis import given
from strategies import Case, cases
from test_backends import Expected

import regard
import regard.nn.functional as our
from regard import _native
from regard._backends.native import TILES

pytestmark = pytest.mark.skipif(_native.isa() not in TILES, reason="no tiles in use")
KIND = torch.bfloat16


def test_the_plan_names_them() -> None:
    plan = regard.plan(*qkv(1, 2, L=40, S=40, dtype=KIND))
    assert plan.kernel == "streaming softmax in float32, products of bfloat16 by tiles"


def test_the_plan_names_parts() -> None:
    plan = regard.plan(*qkv(1, 2, L=40, S=40), precision="high")
    assert plan.kernel == "streaming softmax in float32, each product as three of bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_other_numbers_have_none(dtype: torch.dtype) -> None:
    assert "tiles" not in regard.plan(*qkv(1, 2, L=40, S=40, dtype=dtype)).kernel


# On both sides of what a tile, a strip and a block hold.
@pytest.mark.parametrize("L", [9, 16, 17, 32, 33, 300])
@pytest.mark.parametrize("S", [1, 31, 32, 33, 127, 129, 300])
def test_every_length(L: int, S: int) -> None:
    check(*qkv(1, 2, L=L, S=S, d_k=32, d_v=32, dtype=KIND))


@pytest.mark.parametrize("d_k", [1, 16, 31, 33, 64, 80, 96, 256])
@pytest.mark.parametrize("d_v", [1, 17, 32, 48, 128, 256])
def test_every_width(d_k: int, d_v: int) -> None:
    check(*qkv(1, 2, L=50, S=70, d_k=d_k, d_v=d_v, dtype=KIND), is_causal=True)


@pytest.mark.parametrize("steps", [(2, 1), (1, 2), (3, 2)])
def test_rows_and_columns_with_gaps(steps: tuple[int, int]) -> None:
    rows, columns = steps
    wide = qkv(1, 2, L=40 * rows, S=50 * rows, d_k=64 * columns, d_v=64 * columns, dtype=KIND)
    check(*(x[..., ::rows, ::columns] for x in wide))


def test_heads_that_share_keys_and_end_within_a_strip() -> None:
    q, k, v = tensors((1, 6, 21, 64), (1, 2, 150, 64), (1, 2, 150, 64), dtype=KIND)
    check(q, k, v, enable_gqa=True)


def test_many_blocks_under_a_causal_mask() -> None:
    check(*qkv(1, 1, L=700, S=700, d_k=64, d_v=64, dtype=KIND), is_causal=True)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_no_query_sees_may_hold_anything(poison: float) -> None:
    """The last keys and values are hidden; so are, in the gradients, the queries that see none."""
    arrays = qkv(1, 2, L=60, S=150, d_k=32, d_v=32, dtype=KIND)
    mask = torch.ones(60, 150, dtype=torch.bool)
    mask[:, 130:], mask[50:] = False, False
    expected = results(our.scaled_dot_product_attention, arrays, {"attn_mask": mask})
    arrays[1][..., 130:, :] = arrays[2][..., 130:, :] = poison
    arrays[0][..., 50:, :] = poison
    got = results(our.scaled_dot_product_attention, arrays, {"attn_mask": mask})
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0.01, atol=0.01)


def test_nan_that_is_seen_is_passed_on() -> None:
    query, key, value = qkv(1, 1, L=40, S=40, d_k=32, d_v=32, dtype=KIND)
    value[..., 3, 5] = float("nan")
    context = our.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert context.isnan().nonzero().tolist() == [[0, 0, i, 5] for i in range(3, 40)]


def test_the_score_s_scale_need_not_be_a_number_of_theirs() -> None:
    check(*qkv(1, 2, L=40, S=60, d_k=64, d_v=64, dtype=KIND), scale=0.1234567)


@pytest.mark.parametrize(
    "observe", [regard.Observe(received="all", top=3), regard.Observe(entropy=True)]
)
def test_bits_do_not_depend_on_what_is_observed(observe: regard.Observe) -> None:
    arrays = qkv(1, 2, L=100, S=300, d_k=64, d_v=64, dtype=KIND)
    plain = regard.attention(*arrays, backend="native")
    context, _ = regard.attention(*arrays, observe=observe, backend="native")
    assert torch.equal(plain, context)


def test_gradients_of_more_strips_than_take_turns_at_once() -> None:
    """Sixteen heads leave each one part: bundles of eight strips and of two."""
    check(*qkv(1, 16, L=300, S=140, d_k=32, d_v=32, dtype=KIND), is_causal=True)


@given(case=cases(dtypes=("float32",)))
def test_in_parts_it_agrees_with_the_reference(case: Case) -> None:
    expected = Expected(case)
    expected.slack *= 2.0**7  # what is left of 24 bits
    context, seen = regard.attention(
        *case.arrays, **case.options, observe=case.observe, backend="native", precision="high"
    )
    expected.check_context(context)
    expected.check(seen)


PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a causal mask": {"mask": regard.causal("end")},
    "documents": {"mask": regard.documents(torch.arange(70) // 30, torch.arange(200) // 60)},
    "dropout and sinks": {"dropout": 0.2, "sinks": torch.ones(2)},
    "a softcap": {"softcap": 3.0},
    "great scores": {"scale": 2.0},
}


@pytest.mark.parametrize("widths", [(64, 128), (40, 24)], ids=["full tiles", "parts of them"])
@pytest.mark.parametrize("case", PARTS)
def test_float32_in_parts_errs_by_a_hundred_thousandth(case: str, widths: tuple[int, int]) -> None:
    arrays = qkv(1, 2, L=70, S=200, d_k=widths[0], d_v=widths[1])
    scores = widths[0] * PARTS[case].get("scale", widths[0] ** -0.5)

    def found(kind: torch.dtype, **more: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        inputs = [x.to(kind).requires_grad_() for x in arrays]
        context = regard.attention(*inputs, **PARTS[case], **more)
        return [context.detach(), *torch.autograd.grad(context.sin().sum(), inputs)]

    high, exact = found(torch.float32, precision="high"), found(torch.float64)
    for x, y in zip(high, exact, strict=True):
        error = float((x - y).norm() / y.norm())
        assert 5e-7 < error < 1e-5 * max(scores / 4, 2)  # less would be float32's own


def test_the_gradient_of_a_bias_in_parts() -> None:
    arrays, bias = qkv(1, 2, L=40, S=50, d_k=32, d_v=32), torch.zeros(2, 40, 50)

    def found(**options: Any) -> torch.Tensor:
        learned = bias.clone().requires_grad_()
        context = regard.attention(*arrays, bias=learned, **options)
        return torch.autograd.grad(context.sin().sum(), learned)[0]

    torch.testing.assert_close(found(precision="high"), found(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3.4e38])
def test_values_in_parts_that_no_query_sees_may_hold_anything(poison: float) -> None:
    query, key, value = qkv(1, 2, L=40, S=150, d_k=32, d_v=32)
    expected = regard.attention(query, key, value, mask=regard.lengths(130), precision="high")
    value[..., 130:, :] = poison
    got = regard.attention(query, key, value, mask=regard.lengths(130), precision="high")
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def test_queries_in_parts_that_see_nothing_give_no_gradient() -> None:
    arrays = [x.requires_grad_() for x in qkv(1, 1, L=40, S=50, d_k=32, d_v=32)]
    mask = regard.padding(torch.ones(50, dtype=torch.bool), torch.arange(40) < 30)
    expected = torch.autograd.grad(regard.attention(*arrays, mask=mask).sum(), arrays)
    with torch.no_grad():
        arrays[0][..., 30:, :] = float("nan")
    context = regard.attention(*arrays, mask=mask, precision="high")
    got = torch.autograd.grad(context.sum(), arrays)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
