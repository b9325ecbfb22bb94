"""Watching: what a trace holds, what it refuses, and that models are left as they were."""

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CACHE, COMMON, inputs, output, scrambled, tiny, watched
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    EncoderDecoderModel,
    Mamba2Config,
    Mamba2Model,
)
from transformers.cache_utils import StaticCache

import regard
from regard import watch
from regard._watch import record
from regard._watch.active import watchers

pytestmark = pytest.mark.once


def test_only_what_was_asked_for_is_observed() -> None:
    trace, _ = watched(tiny("bert"), **inputs(9), observe=regard.Observe(peak=True))
    seen = trace[0].observation
    assert seen.lse is not None
    assert seen.peak is not None
    assert seen.entropy is seen.received is seen.map is seen.top is seen.spans is seen.sink is None


def test_a_layer_by_number_and_name() -> None:
    trace, _ = watched(tiny("llama"), **inputs(9))
    names = [f"model.layers.{k}.self_attn" for k in range(3)]
    assert (list(trace.names), [layer.name for layer in trace], len(trace)) == (names, names, 3)
    assert trace[1] is trace[names[1]] is trace[-2] is trace[np.int64(1)]
    assert trace[2] is trace[-1]
    assert repr(trace) == "Trace(3 layers)"
    assert (trace[0].weights.shape, trace[0].observation.lse.shape) == ((2, 4, 9, 9), (2, 4, 9))


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (3, "layer: got 3; needs a number from -3 to 2"),
        (-4, "layer: got -4; needs a number from -3 to 2"),
        ("model", 'layer: got "model"; the names are model.layers.0.self_attn, model.layers.1'),
    ],
)
def test_a_layer_that_is_not_there(which: Any, message: str) -> None:
    trace, _ = watched(tiny("llama"), **inputs(9))
    with pytest.raises(regard.LayerError, match=message):
        trace[which]


def test_layers_that_share_their_module_are_told_apart() -> None:
    trace, _ = watched(tiny("albert"), **inputs(9))
    name = trace[0].name
    assert list(trace.names) == [name, f"{name}#2", f"{name}#3"]
    assert not torch.equal(trace[0].weights[..., :, :], trace[f"{name}#2"].weights[..., :, :])


class TestWhatTheModelHadIsPutBack:
    @pytest.fixture(params=["eager", "sdpa", "regard"])
    def model(self, request: pytest.FixtureRequest) -> Any:
        model = tiny("llama")
        model.set_attn_implementation(request.param)
        return model

    @staticmethod
    def state(model: Any) -> Any:
        hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
        attributes = [sorted(vars(module)) for module in model.modules()]
        return copy.deepcopy((model.config.to_dict(), hooks, attributes)), [
            module.config._attn_implementation
            for module in model.modules()
            if "config" in vars(module)
        ]

    def test_afterwards(self, model: Any) -> None:
        before = self.state(model)
        with watch(model):
            assert model.config._attn_implementation == "regard"
            model(**inputs(9))
        assert self.state(model) == before
        assert watchers == []

    def test_after_an_exception(self, model: Any) -> None:
        before = self.state(model)
        with pytest.raises(ZeroDivisionError), watch(model):
            raise ZeroDivisionError
        with pytest.raises(IndexError), watch(model):
            model(torch.tensor([[10**6]]))
        assert self.state(model) == before
        assert watchers == []

    def test_when_nested(self, model: Any) -> None:
        before = self.state(model)
        with watch(model, observe=regard.Observe(entropy=True)) as outer:
            with watch(model, observe=regard.Observe(top=2)) as inner:
                model(**inputs(9))
            assert model.config._attn_implementation == "regard"
        assert self.state(model) == before
        assert len(outer) == len(inner) == 3
        for a, b in zip(outer, inner, strict=True):
            assert torch.equal(a.weights[..., :, :], b.weights[..., :, :])
            assert a.observation.entropy is not None is not b.observation.top
            assert a.observation.top is None is b.observation.entropy


def test_each_part_of_a_model_gets_its_own_back() -> None:
    """Models within models may have attention implementations of their own."""
    decoder = BertLMHeadModel(BertConfig(**COMMON, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=tiny("bert"), decoder=scrambled(decoder))
    model.encoder.config._attn_implementation = "eager"
    model.decoder.config._attn_implementation = "sdpa"
    given = inputs(12)
    with watch(model) as trace, torch.no_grad():
        model(**given, decoder_input_ids=given["input_ids"][:, :5])
    assert model.encoder.config._attn_implementation == "eager"
    assert model.decoder.config._attn_implementation == "sdpa"
    shapes = [layer.weights.shape[2:] for layer in trace]
    assert shapes == [(12, 12)] * 3 + [(5, 5), (5, 12)] * 3


def test_what_runs_outside_of_a_forward_pass_is_not_recorded() -> None:
    """Checkpointed layers run once more in the backward pass."""
    model, given = tiny("llama"), inputs(9)
    model.train()
    model.activation_checkpointing_enable()
    with watch(model) as trace:
        model(**given).logits.square().mean().backward()
    assert len(trace) == 3


def test_a_second_text_is_refused() -> None:
    model, given = tiny("llama"), inputs(9)
    with watch(model) as trace, torch.no_grad():
        first = model(**given)
        for again in (model, model.model):
            message = "begins another, at position 0 after 9 tokens; watch each in a block of its"
            with pytest.raises(regard.ModelError, match=message):
                again(**given)
    assert len(trace) == 3
    assert torch.equal(first.logits, output(model, "regard", **given).logits)


def test_part_of_a_model_may_be_run_and_the_whole_may_hold_models() -> None:
    model, given = tiny("llama"), inputs(9)
    with watch(model) as trace:
        model.model(**given)
    assert trace.names[0] == "model.layers.0.self_attn"
    whole = torch.nn.ModuleDict({"text": model})
    with watch(whole) as trace:
        whole["text"](**given)
    assert trace.names[0] == "text.model.layers.0.self_attn"


def test_tokens_are_noted_from_positional_arguments_too() -> None:
    model, given = tiny("llama"), inputs(9, "left")
    with watch(model) as trace:
        model(given["input_ids"], given["attention_mask"])
    assert torch.equal(trace.token_ids, given["input_ids"])
    assert torch.equal(trace.attention_mask, given["attention_mask"])
    assert not trace[0].weights[1, :, :3, :].any()


def test_without_tokens_or_tokenizer(minilm: Any) -> None:
    model, tokenizer = minilm
    given = inputs(9)
    trace, _ = watched(model, **given)
    with pytest.raises(regard.TextError, match=r"needs regard\.watch\(model, tokenizer=\.\.\.\)"):
        trace.tokens()
    trace, _ = watched(model, inputs_embeds=torch.zeros(1, 4, 384), tokenizer=tokenizer)
    with pytest.raises(regard.TextError, match="was not called with input_ids"):
        trace.words()
    trace, _ = watched(model, **given, tokenizer=tokenizer)
    with pytest.raises(regard.OptionError, match="entry: got 2; needs a number from -2 to 1"):
        trace.words(2)


@pytest.mark.parametrize("model", [7, "llama", torch.ones(2)])
def test_what_is_no_model(model: Any) -> None:
    message = f"^model: got {type(model).__name__}; needs a torch module$"
    with pytest.raises(regard.ModelError, match=message), watch(model):
        pass


def test_a_model_without_attention() -> None:
    config = Mamba2Config(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, head_dim=8, num_heads=4
    )
    with (
        pytest.raises(regard.ModelError, match="Mamba2Model has no attention"),
        watch(Mamba2Model(config)),
    ):
        pass
    message = "model: Linear ran no attention that can be watched"
    model = torch.nn.Linear(2, 2)
    with pytest.raises(regard.ModelError, match=message), watch(model):
        model(torch.ones(2))


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=8, n_layer=4, n_head=2))


def test_a_model_whose_attention_does_not_go_through_the_interface() -> None:
    message = (
        r"attentions of BloomForCausalLM do not go through .*: transformer\.h\.0\.self_attention, "
        r"transformer\.h\.1\.self_attention, transformer\.h\.2\.self_attention and 1 more$"
    )
    model = bloom()
    with pytest.raises(regard.ModelError, match=message), watch(model):
        model(**inputs(9))


class Pair(torch.nn.Module):
    """A model that can be watched beside one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.missed = tiny("bert"), bloom()

    def forward(self, ids: Any, both: bool) -> None:
        if both:
            self.seen(ids)
        self.missed(ids)


def test_an_attention_that_was_missed_is_named() -> None:
    model, ids = Pair(), inputs(9)["input_ids"]
    missed = ", ".join(f"missed.transformer.h.{k}.self_attention" for k in range(4))
    warned = pytest.warns(UserWarning, match=f"not in the trace, since they do .*: {missed}$")
    with warned, watch(model) as trace:
        model(ids, both=True)
    assert len(trace) == 3
    assert torch.equal(trace.token_ids, ids)
    failed = pytest.raises(regard.ModelError, match="attentions of Pair do not go through")
    with failed, watch(model):
        model(ids, both=False)


def test_observe_is_checked() -> None:
    with (
        pytest.raises(regard.DtypeError, match="observe: got str"),
        watch(tiny("bert"), observe="all"),
    ):
        pass
    for padding in ("none", "left"):
        with pytest.raises(regard.OptionError, match="top: needs at most S = 9 keys"):
            watched(tiny("bert"), **inputs(9, padding), observe=regard.Observe(top=10))


def test_an_empty_trace_says_so() -> None:
    with watch(tiny("bert")) as trace:
        pass
    assert (len(trace), list(trace)) == (0, [])
    with pytest.raises(regard.ModelError, match="trace: is empty; call the model inside"):
        trace[0]


def test_tensors_are_kept_by_reference_unless_they_may_be_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[bool] = []
    as_it_is = record._as_it_is

    def spy(x: Any) -> Any:
        kept.append(as_it_is(x).data_ptr() == x.data_ptr())
        return as_it_is(x)

    monkeypatch.setattr(record, "_as_it_is", spy)
    model, given = tiny("llama"), inputs(9)
    watched(model, **given)
    assert kept == [True] * 6
    kept.clear()
    with torch.inference_mode():
        watched(model, **given)
    assert kept == [False] * 6


def test_a_static_cache_may_be_written_on_after_the_watch() -> None:
    model, given = tiny("llama"), inputs(12, "left")
    cache: Any = StaticCache(config=model.config, max_cache_len=20)
    trace, _ = watched(model, **given, **{CACHE: cache})
    before = trace[2].weights[..., :, :].clone()
    fresh, _ = watched(model, **given)
    torch.testing.assert_close(before[..., :12], fresh[2].weights[..., :, :], atol=1e-6, rtol=1e-5)
    assert not before[..., 12:].any()
    for layer in cache.layers:
        layer.keys.normal_()
    assert torch.equal(trace[2].weights[..., :, :], before)


def test_gradients_flow_through_a_watched_model_and_not_into_the_trace() -> None:
    model, given = tiny("llama"), inputs(9)
    gradients = []
    for looked_at in (False, True):
        model.zero_grad()
        model.set_attn_implementation("regard")
        if looked_at:
            with watch(model) as trace:
                model(**given).logits.square().mean().backward()
        else:
            model(**given).logits.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)
    assert not trace[0].observation.lse.requires_grad
    assert trace[0].weights[0, 0, 8, :].sum() == pytest.approx(1.0)


def test_a_trace_keeps_no_model_alive() -> None:
    model = tiny("bert")
    trace, _ = watched(model, **inputs(9))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert trace[0].weights.shape == (2, 4, 9, 9)
