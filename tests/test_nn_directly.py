"""Calls that go straight to the kernels, forward and backward, and those that must not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as their
from beside_torch import gradients, learning, noise, qkv
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from regard._backends import native_call
from regard._errors import BackendError
from regard.nn import _directly, functional
from regard.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.once

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "a mask": {"attn_mask": noise(7, 9) < 0.7},
    "a mask and causal": {"attn_mask": noise(3, 1, 9) < 0.7, "is_causal": True},
    "a row that sees nothing": {"attn_mask": torch.arange(7)[:, None].expand(7, 9) != 3},
    "a bias": {"attn_mask": noise(3, 7, 9), "scale": 0.3},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def no_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the long way was taken")

    monkeypatch.setattr(native_call, "_given", refuse)


def long_way(*tensors: Tensor, **options: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "attend_directly", lambda *_: None)
        context: Tensor = scaled_dot_product_attention(*tensors, **options)
        return context


@every_option
@pytest.mark.usefixtures("no_long_way")
def test_a_plain_call_is_short_both_ways(options: dict[str, Any]) -> None:
    query, key, value = learning(*qkv(2, 3))
    scaled_dot_product_attention(query, key, value, **options).sum().backward()
    assert query.grad is not None


@every_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_has_the_gradients_of_the_long_way(dtype: torch.dtype, options: dict[str, Any]) -> None:
    arrays = learning(*(x.to(dtype) for x in qkv(2, 3)))
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = options | {"attn_mask": mask.to(dtype)}
    short = gradients(scaled_dot_product_attention, arrays, **options)
    assert all(map(torch.equal, short, gradients(long_way, arrays, **options)))


def test_keys_that_several_heads_share_get_the_gradients_of_all() -> None:
    arrays = learning(noise(2, 6, 7, 4), noise(2, 3, 9, 4), noise(2, 3, 9, 5))
    short = gradients(scaled_dot_product_attention, arrays, enable_gqa=True)
    assert all(map(torch.equal, short, gradients(long_way, arrays, enable_gqa=True)))


def test_only_what_learns_has_a_gradient() -> None:
    query, key, value = qkv(2, 3)
    value.requires_grad_()
    scaled_dot_product_attention(query, key, value).sum().backward()
    assert [x.grad is None for x in (query, key, value)] == [True, True, False]


def columns_first(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def as_parameter(x: Tensor) -> Tensor:
    return torch.nn.Parameter(x, requires_grad=False)


def through_double(x: Tensor) -> Tensor:
    return x.double()


@pytest.mark.parametrize("hidden", [slice(0, 3), slice(130, 133), slice(297, 300)])
def test_a_long_row_is_tested_where_the_mask_cuts_it(hidden: slice) -> None:
    arrays = learning(noise(2, 3, 40, 8), noise(2, 3, 300, 8), noise(2, 3, 300, 5))
    mask = torch.ones(40, 300, dtype=torch.bool)
    mask[7:20, hidden] = False
    found = gradients(scaled_dot_product_attention, arrays, attn_mask=mask)
    expected = gradients(their.scaled_dot_product_attention, arrays, attn_mask=mask)
    torch.testing.assert_close(found, expected)


def test_numbers_saved_in_another_dtype_take_the_long_way() -> None:
    query, key, value = learning(*qkv(2, 3))
    with saved_tensors_hooks(lambda x: x, through_double):
        context = scaled_dot_product_attention(query, key, value)
    found = torch.autograd.grad(context.sum(), (query, key, value))
    expected = torch.autograd.grad(long_way(query, key, value).sum(), (query, key, value))
    assert [x.dtype for x in found] == [torch.float32] * 3
    torch.testing.assert_close(found, expected)


def test_a_second_derivative_is_refused() -> None:
    query, key, value = learning(*qkv(2, 3))
    context = scaled_dot_product_attention(query, key, value)
    (of_query,) = torch.autograd.grad(context.sin().sum(), query, create_graph=True)
    with pytest.raises(BackendError, match="derivative"):
        of_query.sum().backward()


@pytest.mark.parametrize("returned", [columns_first, as_parameter])
def test_what_hooks_give_back_in_other_places_serves(returned: Callable[[Tensor], Tensor]) -> None:
    query, key, value = learning(*qkv(2, 3))
    with saved_tensors_hooks(lambda x: x, returned):
        context = scaled_dot_product_attention(query, key, value)
    found = torch.autograd.grad(context.sum(), (query, key, value))
    expected = torch.autograd.grad(long_way(query, key, value).sum(), (query, key, value))
    assert all(map(torch.equal, found, expected))


def test_a_gradient_for_each_of_several_is_that_of_each_alone() -> None:
    query, key, value = learning(*qkv(2, 3))
    context = scaled_dot_product_attention(query, key, value)
    several = noise(4, *context.shape)
    batched = torch.autograd.grad(
        context, (query,), several, retain_graph=True, is_grads_batched=True
    )[0]
    alone = [torch.autograd.grad(context, query, x, retain_graph=True)[0] for x in several]
    torch.testing.assert_close(batched, torch.stack(alone))


def test_changed_numbers_are_refused_by_autograd() -> None:
    query, key, value = learning(*qkv(2, 3))
    kept = key * 1
    context = scaled_dot_product_attention(query, kept, value)
    kept.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        context.sum().backward()


def test_half_precision_takes_the_long_way() -> None:
    query, key, value = learning(*(x.bfloat16() for x in qkv(2, 3)))
    assert _directly.attend_directly(query, key, value, None, False, None, False) is None
