"""Watching the modules of `regard.nn`: every attention is seen, and steps are joined."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard import watch
from regard.nn import (
    KeyValueCache,
    MultiHeadAttention,
    MultiplicativeAttention,
    Recurrent,
    RotaryPositions,
    Transformer,
)

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

IDS = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(1))
TARGET_IDS = torch.randint(50, (3, 5), generator=torch.Generator().manual_seed(2))
REAL = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
SEEN = regard.Observe(entropy=True, received="all")
LOWER = torch.ones(7, 7, dtype=torch.bool).tril()


class Translator(nn.Module):
    """Embeddings around an encoder-decoder, as people write one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.model = model

    def forward(self, source: Tensor, target: Tensor, real: Tensor | None = None) -> Any:
        return self.model(3 * self.embedding(source), 3 * self.embedding(target), real)

    def write(self, source: Tensor, target: Tensor, real: Tensor) -> Any:
        """The same, token by token."""
        memory = self.model.encode(3 * self.embedding(source), real)
        cache, steps = self.model.new_cache(), []
        for token in target.split(1, 1):
            x = 3 * self.embedding(token)
            steps.append(self.model.decode(x, memory, memory_mask=real, cache=cache))
        return torch.cat(steps, 1)


def transformer() -> Translator:
    torch.manual_seed(1)
    return Translator(Transformer(16, 4, 1, 2, 24)).eval()


def recurrent(**options: Any) -> Translator:
    torch.manual_seed(1)
    return Translator(Recurrent(16, **options)).eval()


class LanguageModel(nn.Module):
    """Attentions over tokens, with a cache each."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.attention = MultiHeadAttention(16, 4, **options)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None) -> Any:
        return self.attention(3 * self.embedding(ids), causal=True, cache=cache)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped, rotary": {"kv_heads": 2, "rotary": RotaryPositions(4)},
    "alibi": {"alibi": True},
    "sinks": {"sinks": True},
}


class TestMultiHead:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_weights_and_output(self, options: dict[str, Any]) -> None:
        model = LanguageModel(**options)
        expected, attention = model(IDS), model.attention
        _, seen = attention(3 * model.embedding(IDS), causal=True, observe=SEEN)
        with watch(model, observe=SEEN) as trace:
            result = model(IDS)
        torch.testing.assert_close(result, expected)
        assert trace.names == ("attention",)
        assert torch.equal(trace.token_ids, IDS)
        weights = trace[0].weights[..., :, :]
        assert weights.shape == (3, 4, 7, 7)
        assert not weights[..., ~LOWER].any()
        torch.testing.assert_close(weights.sum(-2), seen.received)
        torch.testing.assert_close(trace[0].observation.entropy, seen.entropy)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    @pytest.mark.parametrize("cuts", [(1,) * 7, (4, 2, 1)])
    def test_steps_with_a_cache_are_one_matrix(
        self, options: dict[str, Any], cuts: tuple[int, ...]
    ) -> None:
        model, cache = LanguageModel(**options), KeyValueCache()
        with watch(model, observe=SEEN) as whole:
            model(IDS)
        with watch(model, observe=SEEN) as steps:
            for part in IDS.split(cuts, 1):
                model(part, cache=cache)
        assert torch.equal(steps.token_ids, IDS)
        check_same(steps, whole)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_one_that_is_observed_too(self, options: dict[str, Any]) -> None:
        module, x = MultiHeadAttention(16, 4, **options), torch.randn(2, 5, 16)
        _, expected = module(x, observe=SEEN)
        with watch(module) as trace:
            _, seen = module(x, observe=SEEN)
        torch.testing.assert_close(seen.entropy, expected.entropy)
        assert trace[0].weights.shape == (2, 4, 5, 5)

    def test_fewer_queries_than_keys(self) -> None:
        """Causal and with a bias: keys that no query sees are not kept."""
        module = MultiHeadAttention(16, 4, alibi=True)
        x, key = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
        expected = module(x, key, causal=True)
        with watch(module) as trace:
            torch.testing.assert_close(module(x, key, causal=True), expected)
        assert trace[0].weights.shape == (2, 4, 3, 3)


def test_projections_are_joined_while_watched_too() -> None:
    """So that a watched run has the bits of an unwatched one."""
    model = MultiHeadAttention(16, 4).eval()
    x = torch.randn(8, 100, 16, generator=torch.Generator().manual_seed(3))
    with watch(model):
        found = model(x)
        assert not model.q_proj._forward_pre_hooks
    assert torch.equal(found, model(x))


def check_same(steps: regard.Trace, whole: regard.Trace) -> None:
    assert steps.names == whole.names
    for a, b in zip(steps, whole, strict=True):
        assert (a.queries, a.keys, a.cross, a.sequence) == (b.queries, b.keys, b.cross, b.sequence)
        torch.testing.assert_close(a.weights[..., :, :], b.weights[..., :, :], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            a.observation.received, b.observation.received, rtol=1e-4, atol=1e-5
        )


def beams_stayed_then_moved(model: Any, **options: Any) -> tuple[Any, Callable[[], Tensor]]:
    """A trace that followed a cache until its entries changed places, and the refused step."""
    vectors = torch.randn(3, 5, 16)
    memory, cache = model.encode(vectors), model.new_cache()
    refused = partial(model.decode, vectors[:, 4:], memory, cache=cache)
    with watch(model, **options) as trace:
        model.decode(vectors[:, :3], memory, cache=cache)
        cache.reorder(torch.arange(3))
        model.decode(vectors[:, 3:4], memory, cache=cache)
        cache.reorder(torch.tensor([1, 0, 2]), memory=False)
        with pytest.raises(regard.ModelError, match="beam search"):
            refused()
    return trace, refused


class TestTransformer:
    def test_every_attention_is_there(self) -> None:
        model = transformer()
        expected = model(IDS, TARGET_IDS, REAL)
        with watch(model, observe=SEEN) as trace:
            torch.testing.assert_close(model(IDS, TARGET_IDS, REAL), expected)
        shapes = {layer.name: layer.weights.shape for layer in trace}
        assert shapes == {
            "model.encoder.layers.0.self_attention": (3, 4, 7, 7),
            "model.decoder.layers.0.self_attention": (3, 4, 5, 5),
            "model.decoder.layers.0.cross_attention": (3, 4, 5, 7),
            "model.decoder.layers.1.self_attention": (3, 4, 5, 5),
            "model.decoder.layers.1.cross_attention": (3, 4, 5, 7),
        }
        assert [layer.cross for layer in trace] == [False, False, True, False, True]
        assert torch.equal(trace.token_ids, IDS)
        assert torch.equal(trace.decoder_token_ids, TARGET_IDS)
        padded = trace[0].weights[..., :, :].transpose(1, 2)[~REAL]
        assert not padded.any()
        assert not trace[2].weights[..., :, :].transpose(1, 3)[~REAL].any()

    @pytest.mark.parametrize("length", [5, 7, 1])
    def test_lengths_that_are_alike_do_not_hide_which_is_cross(self, length: int) -> None:
        model = transformer()
        with watch(model) as trace:
            model(IDS[:, :length], TARGET_IDS[:, : min(length, 5)])
        assert [layer.cross for layer in trace] == [False, False, True, False, True]

    def test_steps_are_joined(self) -> None:
        model = transformer()
        with watch(model, observe=SEEN) as whole:
            model(IDS, TARGET_IDS, REAL)
        with watch(model, observe=SEEN) as steps:
            model.write(IDS, TARGET_IDS, REAL)
        check_same(steps, whole)

    def test_a_trace_goes_through_a_file(self, tmp_path: Any) -> None:
        model = transformer()
        with watch(model, observe=SEEN) as trace:
            model.write(IDS, TARGET_IDS, REAL)
        trace.save(tmp_path / "run.safetensors")
        check_same(regard.Trace.load(tmp_path / "run.safetensors"), trace)

    def test_another_text_is_another_run(self) -> None:
        model = transformer()
        with watch(model):
            model(IDS, TARGET_IDS)
            with pytest.raises(regard.ModelError, match="a trace holds one run"):
                model(IDS, TARGET_IDS)

    def test_beams_that_changed_places_are_refused(self) -> None:
        model, vectors = transformer().model, torch.randn(3, 5, 16)
        memory, cache = model.encode(vectors), model.new_cache()
        with watch(model):
            model.decode(vectors[:, :4], memory, cache=cache)
            cache.reorder(torch.tensor([1, 0, 2]))
            with pytest.raises(regard.ModelError, match="beam search"):
                model.decode(vectors[:, 4:], memory, cache=cache)

    @pytest.mark.parametrize("layers", [None, ["decoder.layers.0.cross_attention"]])
    def test_beams_that_stayed_are_followed(self, layers: Any) -> None:
        """As a beam of one does at every step; cross-attention alone notices those that did not."""
        trace, _ = beams_stayed_then_moved(transformer().model, layers=layers)
        assert trace[-1].weights.shape == (3, 4, 4, 5)

    def test_trained_while_it_is_watched(self) -> None:
        model = transformer()
        model(IDS, TARGET_IDS, REAL).square().sum().backward()
        expected = model.embedding.weight.grad.clone()
        model.zero_grad()
        with watch(model):
            model(IDS, TARGET_IDS, REAL).square().sum().backward()
        torch.testing.assert_close(model.embedding.weight.grad, expected, rtol=1e-4, atol=1e-4)


class TestRecurrent:
    @pytest.mark.parametrize(
        "options",
        [
            {"attention": "additive"},
            {"attention": "multiplicative"},
            {"attention": "additive", "cell": "lstm", "decoder_layers": 2},
        ],
    )
    def test_the_alignment_of_a_whole_text(self, options: dict[str, Any]) -> None:
        model = recurrent(**options)
        expected = model(IDS, TARGET_IDS, REAL)
        with watch(model, observe=SEEN) as trace:
            torch.testing.assert_close(model(IDS, TARGET_IDS, REAL), expected)
        assert trace.names == ("model.decoder.cell.cross_attention",)
        layer = trace[0]
        assert (layer.cross, layer.sequence) == (True, "decoder")
        weights = layer.weights[..., :, :]
        assert weights.shape == (3, 1, 5, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1, 5))
        assert not weights.transpose(1, 3)[~REAL].any()
        assert torch.equal(trace.token_ids, IDS)
        assert torch.equal(trace.decoder_token_ids, TARGET_IDS)
        assert trace.passes == {"input": [7], "decoder": [5]}

    def test_steps_are_joined(self) -> None:
        model = recurrent()
        with watch(model, observe=SEEN) as whole:
            model(IDS, TARGET_IDS, REAL)
        with watch(model, observe=SEEN) as steps:
            model.write(IDS, TARGET_IDS, REAL)
        check_same(steps, whole)

    def test_beams_that_changed_places_are_refused(self) -> None:
        model = recurrent().model
        trace, go_on = beams_stayed_then_moved(model)
        assert trace[0].weights.shape == (3, 1, 4, 5)
        with watch(model):  # what happened before is no part of the run
            go_on()

    def test_a_fixed_summary_has_nothing_to_see(self) -> None:
        model = Translator(Recurrent(16, attention=None))
        with pytest.raises(regard.ModelError, match="ran no attention"), watch(model):
            model(IDS, TARGET_IDS)


def test_multiplicative() -> None:
    module, query, key = MultiplicativeAttention(6, 4), torch.randn(2, 3, 6), torch.randn(2, 5, 4)
    with watch(module) as trace:
        module(query, key)
    expected = (query @ module.weight @ key.mT).softmax(-1)
    torch.testing.assert_close(trace[0].weights[..., :, :], expected[:, None])


def test_an_attention_over_vectors_is_watched_step_by_step() -> None:
    attention, x, cache = MultiHeadAttention(32, 4), torch.randn(2, 6, 32), KeyValueCache()
    with torch.no_grad():
        with watch(attention) as steps:
            for n in range(6):
                attention(x[:, n : n + 1], causal=True, cache=cache)
        with watch(attention) as whole:
            attention(x, causal=True)
    got, want = steps[0], whole[0]
    torch.testing.assert_close(got.weights[..., :, :], want.weights[..., :, :])
    assert (got.queries, got.keys) == (want.queries, want.keys)
