"""Watching models that are none of transformers': PyTorch's functions and modules, and regard's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as imported_by_name

import regard
import regard.nn
from regard import watch
from regard.nn import functional as own

pytestmark = pytest.mark.once


def test_an_offset_from_the_end_is_that_of_all_keys() -> None:
    model = regard.nn.MultiHeadAttention(16, 4, key_size=16)
    query, key = torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    masked = {"causal": True, "mask": regard.window(2, None, "end")}
    with torch.no_grad():
        expected = model(query, key, **masked)
        with watch(model):
            found = model(query, key, **masked)
    torch.testing.assert_close(found, expected)


class Attention(nn.Module):
    """Attention as people write it, with the function that is asked for."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__()
        self.projection = nn.Linear(16, 48)
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (4, 4)).transpose(-2, -3) for part in self.projection(x).chunk(3, -1)
        )
        context: Tensor = self.function(q, k, v, **self.options).transpose(-2, -3).flatten(-2)
        return context

    def weights(self, x: Tensor) -> Tensor:
        q, k, _ = (
            part.unflatten(-1, (4, 4)).transpose(-2, -3) for part in self.projection(x).chunk(3, -1)
        )
        scores = q @ k.mT / 2
        if self.options.get("is_causal"):
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf)
        return scores.softmax(-1)


class Tokens(nn.Module):
    """A little language model."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(layers)

    def forward(self, ids: Tensor) -> Tensor:
        x = 2 * self.embedding(ids)
        for block in self.blocks:
            x = x + block(x)
        return x


IDS = torch.arange(24).reshape(2, 12)
FUNCTIONS = {
    "through its module": lambda *a, **k: torch.nn.functional.scaled_dot_product_attention(*a, **k),
    "imported by name": imported_by_name,
    "regard's": own.scaled_dot_product_attention,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_however_they_are_called(function: str) -> None:
    model = Tokens(*(Attention(FUNCTIONS[function], is_causal=True) for _ in range(2)))
    expected = model(IDS)
    with watch(model, observe=regard.Observe(entropy=True)) as trace:
        result = model(IDS)
    assert trace.names == ("blocks.0", "blocks.1")
    assert torch.equal(trace.token_ids, IDS)
    torch.testing.assert_close(result, expected)
    x = 2 * model.embedding(IDS)
    for block, layer in zip(model.blocks, trace, strict=True):
        torch.testing.assert_close(layer.weights[..., :, :], block.weights(x))
        x = x + block(x)


def test_a_described_causal_mask() -> None:
    model = Tokens(Attention(FUNCTIONS["through its module"], attn_mask=causal_upper_left(12, 12)))
    expected = model(IDS)
    with watch(model) as trace:
        result = model(IDS)
    torch.testing.assert_close(result, expected)
    assert not trace[0].weights[..., :, :].triu(1).any()


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_multi_head_attention(need_weights: bool, training: bool) -> None:
    torch.manual_seed(1)
    module = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    x, pads = torch.randn(2, 12, 16), torch.zeros(2, 12, dtype=torch.bool)
    pads[1, 9:] = True
    options = {"key_padding_mask": pads, "average_attn_weights": False}
    expected, weights = module(x, x, x, **options)
    with watch(module) as trace:
        result, returned = module(x, x, x, need_weights=need_weights, **options)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(trace[0].weights[..., :, :], weights, atol=1e-6, rtol=1e-5)
    assert (returned is None) == (not need_weights)


def test_the_fast_path_of_an_encoder() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).eval()
    x = torch.randn(2, 12, 16)
    with torch.no_grad():
        expected = model(x)
        with watch(model) as trace:
            result = model(x)
    assert trace.names == tuple(f"layers.{k}.self_attn" for k in range(3))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_a_module_that_is_called_twice_keeps_both_calls() -> None:
    block = Attention(imported_by_name)
    model = Tokens(block, block)
    with watch(model) as trace:
        model(IDS)
    assert trace.names == ("blocks.0", "blocks.0#2")
    assert not torch.equal(trace[0].weights[..., :, :], trace[1].weights[..., :, :])


def test_gradients_are_those_of_the_model() -> None:
    model = Tokens(Attention(imported_by_name, is_causal=True))
    model(IDS).square().sum().backward()
    expected = model.embedding.weight.grad.clone()
    model.zero_grad()
    with watch(model):
        model(IDS).square().sum().backward()
    torch.testing.assert_close(model.embedding.weight.grad, expected)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def test_attention_written_by_hand_is_named() -> None:
    alone = Tokens(Attention(by_hand))
    with pytest.raises(regard.ModelError, match=r"cannot be watched: blocks\.0$"), watch(alone):
        alone(IDS)
    beside = Tokens(Attention(imported_by_name), Attention(by_hand))
    warned = pytest.warns(UserWarning, match=r"not in the trace, since .*: blocks\.1$")
    with warned, watch(beside) as trace:
        beside(IDS)
    assert trace.names == ("blocks.0",)


def test_a_model_that_is_one_attention_is_named_by_its_class() -> None:
    alone = Attention(by_hand)
    with pytest.raises(regard.ModelError, match=r"be watched: Attention$"), watch(alone):
        alone(torch.randn(2, 5, 16))
    with watch(model := Attention(imported_by_name), keep="statistics") as trace:
        model(torch.randn(2, 5, 16))
    assert trace.names == ("Attention",)
    with pytest.raises(regard.ModelError, match="weights: Attention kept statistics only"):
        trace[0].weights  # noqa: B018


class AttentionModel(Tokens):
    """Called like an attention, and holding one."""


def test_a_model_named_like_an_attention_is_not_missed_itself() -> None:
    with watch(model := AttentionModel(Attention(imported_by_name))) as trace:
        model(IDS)
    assert trace.names == ("blocks.0",)
    x = torch.randn(2, 4, 5, 16)  # its own softmax over something like scores is told all the same
    model.forward = lambda _: model.blocks[0](x).softmax(-1)  # type: ignore[method-assign]
    missed = r"not in the trace, since .*: AttentionModel$"
    with pytest.warns(UserWarning, match=missed), watch(model):
        model(IDS)


def test_a_module_without_tokens_that_is_called_again() -> None:
    model, x = Attention(imported_by_name), torch.randn(2, 5, 16)
    again = r"^watch: Attention was called a second time, and a trace holds one run; watch each"
    with watch(model):
        model(x)
        with pytest.raises(regard.ModelError, match=again):
            model(x)


def test_functions_outside_of_the_model_are_left_alone() -> None:
    model, x = Tokens(Attention(imported_by_name)), torch.randn(1, 2, 5, 8)
    with watch(model) as trace:
        imported_by_name(x, x, x)
        model(IDS)
    assert len(trace) == 1


def test_what_the_model_had_is_put_back() -> None:
    model = Tokens(Attention(imported_by_name))
    with pytest.raises(IndexError), watch(model):
        model(IDS + 50)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch._C._is_torch_function_mode_enabled()
