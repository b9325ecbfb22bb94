"""Watching a run of several forward passes: generation as one matrix per layer and head."""

import re
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import DECODERS, difference, hidden, inputs, output, tiny

import regard
from regard import Observe, watch

pytestmark = pytest.mark.once

WEIGHT = 2e-5
NEW = 12
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}
EVERYTHING = Observe(entropy=True, peak=True, top=3, received="all", map=(7, 7), sink=True)
ROWS = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}


def generated(
    family: str, padding: str = "none", cache: str = "dynamic", length: int = 40, **options: Any
) -> tuple[regard.Trace, Any, dict[str, torch.Tensor]]:
    """The trace of a generation, the model, and what it read in the end."""
    model, given = tiny(family), inputs(length, padding)
    with watch(model, **options) as trace:
        ids = model.generate(
            **given, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **CACHES[cache]
        )
    ones = torch.ones(2, NEW - 1, dtype=torch.long)
    mask = torch.cat([given["attention_mask"], ones], 1)
    return trace, model, {"input_ids": ids[:, :-1], "attention_mask": mask}


def dense(model: Any, read: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The weights of all that was read, in one pass of the model's own eager attention."""
    found: list[torch.Tensor] = list(
        output(model, "eager", **read, output_attentions=True).attentions
    )
    return found


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_generation_is_one_matrix(family: str, padding: str, cache: str) -> None:
    trace, model, read = generated(family, padding, cache, length=140)
    assert torch.equal(trace.token_ids, read["input_ids"])
    real = read["attention_mask"].bool()
    for layer, expected in zip(trace, dense(model, read), strict=True):
        found = layer.weights[..., :, :]
        assert layer.queries == layer.keys == range(151)
        assert (found - expected).abs().amax(dim=(1, 3))[real].max() < WEIGHT


@pytest.mark.parametrize("keep", ["weights", "statistics"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_statistics_add_up_over_the_passes(family: str, padding: str, keep: str) -> None:
    observe = EVERYTHING if keep == "weights" else Observe(**vars(EVERYTHING) | {"map": None})
    trace, model, read = generated(family, padding, observe=observe, keep=keep)
    real = read["attention_mask"].bool()[:, None, :, None]
    for layer, attention in zip(trace, dense(model, read), strict=True):
        counted, seen = attention * real, layer.observation
        torch.testing.assert_close(seen.received, counted.sum(2), **ROWS)
        torch.testing.assert_close(seen.peak.weight, counted.amax(-1), **ROWS)
        named = counted.gather(-1, seen.peak.key.clamp(min=0)[..., None])[..., 0]
        torch.testing.assert_close(named, seen.peak.weight, **ROWS)
        torch.testing.assert_close(seen.top.weights, counted.topk(3).values, **ROWS)
        assert seen.lse.shape == seen.entropy.shape == counted.shape[:3]
        if keep == "weights":
            torch.testing.assert_close(seen.map, layer.weights.pooled(7, 7), **ROWS)


@pytest.mark.parametrize("keep", ["weights", "statistics"])
@pytest.mark.parametrize("last", [1, 5, NEW, NEW + 8])
def test_mass_from_the_last_queries_of_the_run(last: int, keep: str) -> None:
    trace, model, read = generated("llama", observe=Observe(received=last), keep=keep)
    for layer, attention in zip(trace, dense(model, read), strict=True):
        expected = attention[..., -last:, :].sum(2)
        torch.testing.assert_close(layer.observation.received, expected, **ROWS)


def test_the_tokens_are_those_of_an_unwatched_generation() -> None:
    _, model, read = generated("llama", "left")
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    again = model.generate(**inputs(40, "left"), **options)
    assert torch.equal(again[:, :-1], read["input_ids"])


def bart() -> Any:
    config = hf.BartConfig(
        vocab_size=97,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        forced_eos_token_id=None,
    )
    model = hf.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("source", [9, 6])  # 6 is as long as what the decoder reads
def test_an_encoder_and_its_decoder(source: int) -> None:
    model, ids = bart(), inputs(source)["input_ids"]
    with watch(model) as trace:
        made = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, num_beams=1)
    read = made[:, :-1]
    expected = output(model, "eager", input_ids=ids, decoder_input_ids=read, output_attentions=True)
    assert torch.equal(trace.token_ids, ids)
    assert torch.equal(trace.decoder_token_ids, read)
    kinds = {"encoder.layers": expected.encoder_attentions}
    kinds |= {"self_attn": expected.decoder_attentions}
    kinds |= {"encoder_attn": expected.cross_attentions}
    for layer in trace:
        kind = next(kind for kind in kinds if kind in layer.name)
        assert layer.cross == (kind == "encoder_attn")
        assert layer.sequence == ("input" if kind == "encoder.layers" else "decoder")
        attention = kinds[kind][int(layer.name.split("layers.")[1][0])]
        assert (layer.weights[..., :, :] - attention).abs().max() < WEIGHT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3}, "are not those of the pass before; beam search"),
        ({"use_cache": False}, r"begins another, at position 0 after .* use_cache=True"),
    ],
)
def test_what_cannot_be_followed_is_refused(options: dict[str, Any], message: str) -> None:
    model = tiny("llama")
    with pytest.raises(regard.ModelError, match=message), watch(model):
        model.generate(**inputs(20), max_new_tokens=8, do_sample=False, **options)


def test_statistics_alone_have_no_map_of_several_passes() -> None:
    options = {"observe": Observe(map=(4, 4)), "keep": "statistics"}
    with pytest.raises(regard.ModelError, match="map cannot be gathered over several forward"):
        generated("llama", **options)


def test_chosen_layers_and_heads() -> None:
    trace, *_ = generated("llama", layers=[2], heads=[3, 0], observe=EVERYTHING)
    everything, *_ = generated("llama", observe=EVERYTHING)
    assert trace.numbers == (2,)
    assert trace[2] is trace[-1] is trace["model.layers.2.self_attn"]
    assert trace[2].heads == (0, 3)
    whole = everything[2]
    assert torch.equal(trace[2].weights[..., :, :], whole.weights[..., :, :][:, [0, 3]])
    # Chosen heads share no strip of the kernels: their rows are added up in another order.
    received = trace[2].observation.received, whole.observation.received[:, [0, 3]]
    torch.testing.assert_close(*received, rtol=1e-6, atol=1e-6)
    with pytest.raises(regard.LayerError, match="layer: got 1; needs one of 2, which were watched"):
        trace[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [7]}, regard.LayerError, "layers: got 7; the model ran attentions 0 to 2"),
        ({"layers": ["model.layers.9"]}, regard.LayerError, 'has no module "model.layers.9"'),
        ({"layers": [-1]}, regard.OptionError, "layers: got -1; needs numbers or names from 0"),
        ({"layers": [True]}, regard.DtypeError, "layers: got True; needs numbers or names"),
        ({"layers": []}, regard.OptionError, "layers: got none"),
        ({"heads": [4]}, regard.OptionError, "heads: got 4; model.layers.0.self_attn has 0 to 3"),
        ({"keep": "all"}, regard.OptionError, "keep: got 'all'; needs \"weights\" or"),
        ({"dtype": "int8"}, regard.OptionError, "dtype: got 'int8'; needs one of float32, bfl"),
        ({"budget": "much"}, regard.OptionError, "budget: got 'much'; needs a number of bytes"),
        ({"budget": "10kB"}, regard.LimitError, "budget: 10 kB were given, and the trace needs"),
    ],
)
def test_options_outside_their_range(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generated("llama", **options)


OPTIONS_THAT_FIT = [
    ("70kB", ['dtype="bfloat16" (50 kB)', 'keep="statistics" (3.8 kB)', "layers=... of at most 2"]),
    ("40kB", ['keep="statistics" (3.8 kB)', "layers=... of at most 1"]),
    ("2kB", []),
]


@pytest.mark.parametrize(("budget", "ways"), OPTIONS_THAT_FIT)
def test_a_budget_too_small_says_what_fits(budget: str, ways: list[str]) -> None:
    needs = f"budget: {budget[:-2]}.* kB were given, and the trace needs 96 kB "
    sizes = "(layers: 3, heads: 4, tokens: 40). What fits: "
    rest = re.escape(sizes + ", or ".join([*ways, 'budget="101kB"']))
    model = tiny("llama")
    with pytest.raises(regard.LimitError, match=f"^{needs}{rest}$"), watch(model, budget=budget):
        model(**inputs(40))


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "101kB"},
        {"budget": "70kB", "dtype": "bfloat16"},
        {"budget": "70kB", "layers": [0, 2]},
        {"budget": "40kB", "keep": "statistics"},
    ],
)
def test_what_is_said_to_fit_does(options: dict[str, Any]) -> None:
    model = tiny("llama")
    with watch(model, **options) as trace:
        model(**inputs(40))
    assert len(trace) == len(options.get("layers", "123"))


def test_a_budget_that_a_generation_outgrows_keeps_what_it_has() -> None:
    model = tiny("llama")
    held = pytest.raises(regard.LimitError, match=r"budget: 160 kB were given, and .* by now; what")
    with held, watch(model, budget=160_000) as trace:
        model.generate(**inputs(40), max_new_tokens=60, min_new_tokens=60, do_sample=False)
    assert 40 < trace[0].weights.shape[-1] < 100


def test_rounded_queries_and_keys() -> None:
    exact, *_ = generated("llama")
    rounded, *_ = generated("llama", dtype="bfloat16")
    weights = rounded[1].weights
    assert weights.problem.dtype == "bfloat16"
    torch.testing.assert_close(weights[..., :, :].sum(-1), torch.ones(2, 4, 51), **ROWS)
    worst = (weights[..., :, :] - exact[1].weights[..., :, :]).abs().max()
    assert 1e-4 < worst < 0.1


def test_statistics_alone_hold_no_weights() -> None:
    trace, *_ = generated("llama", keep="statistics", observe=Observe(entropy=True))
    assert trace[0].observation.entropy.shape == (2, 4, 51)
    with pytest.raises(regard.ModelError, match=r"kept statistics only; needs regard\.watch"):
        _ = trace[0].weights


def test_two_threads_are_told_apart() -> None:
    model, failures = tiny("llama"), []

    def elsewhere() -> None:
        try:
            with watch(model):
                pass
        except regard.ModelError as error:
            failures.append(str(error))

    with watch(model):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        model(**inputs(9))
    assert failures == [
        "model: is being watched by another thread; wait for that to end, or watch a copy"
    ]


def test_a_model_changed_while_it_is_watched() -> None:
    model = tiny("llama")
    changed = pytest.raises(regard.ModelError, match="changed while it was watched, at lm_head")
    with changed, watch(model):
        model.lm_head = torch.nn.Linear(64, 97)
    changed = pytest.raises(regard.ModelError, match="attention implementation was changed while")
    with changed, watch(model):
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation != "regard"


def test_a_compiled_model_is_watched_uncompiled() -> None:
    model, given = tiny("llama"), inputs(30)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), watch(compiled) as trace:
        result = compiled(**given)
    assert len(trace) == 3
    expected = hidden(output(model, "eager", **given))
    assert difference(hidden(result), expected, given["attention_mask"]) < 1e-5


COMPILED_WITHIN = """
import sys, torch, regard
model, x = torch.nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 5, 16)
with regard.watch(model):
    model(x, x, x)
assert "torch._dynamo" not in sys.modules
with regard.watch(model) as outer:
    with regard.watch(torch.nn.Linear(2, 2)):
        compiled = torch.compile(model, backend="eager")
    compiled(x, x, x)
assert len(outer) == 1
graphs = []
torch.compile(model, backend=lambda graph, _: graphs.append(1) or graph)(x, x, x)
assert graphs, "nothing is compiled any more"
"""


def test_the_compiler_is_loaded_by_who_compiles_and_then_told() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED_WITHIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encodes", [False, True])
def test_inference_mode(encodes: bool) -> None:
    model, given = bart() if encodes else tiny("llama"), inputs(30)
    with torch.inference_mode(), watch(model, observe=Observe(received="all")) as trace:
        model.generate(**given, max_new_tokens=3, min_new_tokens=3, do_sample=False, num_beams=1)
    for layer in trace:
        rows = layer.weights[..., :, :].sum(dim=(-1, -2))
        torch.testing.assert_close(layer.observation.received.sum(-1), rows, **ROWS)


@pytest.mark.parametrize("received", ["all", 4])
def test_a_look_during_the_run_changes_nothing_and_nothing_changes_it(received: Any) -> None:
    model, given = tiny("llama"), inputs(9)
    looks: list[tuple[torch.Tensor, torch.Tensor]] = []

    def peek(*_: Any) -> None:
        seen = trace[0].observation.received
        looks.append((seen, seen.clone()))

    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with watch(model, observe=Observe(received=received), keep="statistics") as trace:
        hook = model.model.layers[1].register_forward_hook(peek)
        model.generate(**given, **options)
    hook.remove()
    with watch(model, observe=Observe(received=received), keep="statistics") as unseen:
        model.generate(**given, **options)
    torch.testing.assert_close(trace[0].observation.received, unseen[0].observation.received)
    for seen, before in looks:
        torch.testing.assert_close(seen, before)
