"""The weights and observations of watched models, against their own eager attentions."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import CACHE, FAMILIES, difference, hidden, inputs, output, tiny, watched

import regard

TEXTS = [
    "The trophy would not fit in the suitcase because it was too large.",
    "The dog chased the ball because it was bouncing, and then it slept.",
]
RELATIVE = 1e-5
WEIGHT = 2e-5  # absolute, of single weights; the models differ by rounding from the first layer on


def batch(tokenizer: Any, texts: list[str], side: str, pads: int = 0) -> dict[str, torch.Tensor]:
    """Texts padded on a side, to the longest and by so many more."""
    given = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    extra = torch.full((len(texts), pads), tokenizer.pad_token_id)
    none = torch.zeros_like(extra)
    pairs = (("input_ids", extra), ("attention_mask", none))
    order = 1 if side == "right" else -1
    return {name: torch.cat([given[name], more][::order], 1) for name, more in pairs}


def worst_weight(trace: regard.Trace, attentions: Any, real: torch.Tensor) -> float:
    """The greatest difference of any weight of a real query; those of padding must be zero."""
    assert len(trace) == len(attentions)
    worst = 0.0
    for layer, eager in zip(trace, attentions, strict=True):
        assert layer.weights.shape == eager.shape
        mine = layer.weights[..., :, :]
        worst = max(worst, float((mine - eager).abs().amax(dim=(1, 3))[real].max()))
        assert not mine.transpose(1, 2)[~real].any()
    return worst


@pytest.fixture(params=["smollm2", "minilm"])
def packaged(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    found: tuple[Any, Any] = request.getfixturevalue(request.param)
    return found


def assert_as_eager(model: Any, given: dict[str, Any]) -> None:
    """Watched weights and outputs are those of the model's own eager attention."""
    eager = output(model, "eager", **given, output_attentions=True)
    trace, result = watched(model, **given)
    real = given["attention_mask"].bool()
    assert worst_weight(trace, eager.attentions, real) < WEIGHT
    assert difference(hidden(result), hidden(eager), real) < RELATIVE


@pytest.mark.once
@pytest.mark.parametrize("side", ["left", "right"])
def test_packaged_models_padded(packaged: Any, side: str) -> None:
    model, tokenizer = packaged
    given = batch(tokenizer, TEXTS, side, pads=3)
    assert_as_eager(model, given)


@pytest.mark.once
def test_packaged_models_at_200_tokens(packaged: Any) -> None:
    model, tokenizer = packaged
    text = " ".join(TEXTS * 8)
    given = dict(tokenizer(text, return_tensors="pt", truncation=True, max_length=200))
    given.pop("token_type_ids", None)
    assert given["input_ids"].shape == (1, 200)
    assert_as_eager(model, given)


@pytest.mark.once
def test_words_of_packaged_models(packaged: Any) -> None:
    model, tokenizer = packaged
    given = batch(tokenizer, TEXTS, "left", pads=2)
    trace, _ = watched(model, **given, tokenizer=tokenizer)
    assert torch.equal(trace.token_ids, given["input_ids"])
    for entry in (0, 1, -1):
        found = trace.words(entry, TEXTS[entry])
        said = " ".join(word.text for word in found if not word.special)
        assert said == TEXTS[entry].replace(".", " .").replace(",", " ,")
        assert found[-1].stop == given["input_ids"].shape[1] == len(trace.tokens(entry))
        assert sum(word.special for word in found[:3]) >= 2


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, padding: str) -> None:
    model, given = tiny(family), inputs(150, padding)
    eager = output(model, "eager", **given, output_attentions=True)
    trace, result = watched(model, **given)
    real = given["attention_mask"].bool()
    assert worst_weight(trace, eager.attentions, real) < WEIGHT
    assert torch.equal(hidden(result), hidden(output(model, "regard", **given)))


def entropy_of(weights: torch.Tensor) -> torch.Tensor:
    return -torch.where(weights > 0, weights * weights.log(), 0.0).sum(-1)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_observations_leave_padding_out(family: str, padding: str) -> None:
    model, given = tiny(family), inputs(90, padding)
    real = given["attention_mask"].bool()[:, None]
    observe = regard.Observe(entropy=True, received="all", map=(9, 9), top=3, peak=True)
    trace, result = watched(model, **given, observe=observe)
    assert torch.equal(hidden(result), hidden(output(model, "regard", **given)))
    eager = output(model, "eager", **given, output_attentions=True)
    for layer, attention in zip(trace, eager.attentions, strict=True):
        seen, counted = layer.observation, attention.double() * real[..., None]
        close = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}
        torch.testing.assert_close(seen.entropy, entropy_of(counted), **close)
        torch.testing.assert_close(seen.received, counted.sum(2), **close)
        torch.testing.assert_close(seen.peak.weight, counted.amax(-1), **close)
        torch.testing.assert_close(seen.top.weights, counted.topk(3).values, **close)
        assert (seen.peak.key[~real.expand_as(seen.peak.key)] == -1).all()
        bins = counted.unflatten(-1, (9, 10)).sum(-1).unflatten(2, (9, 10)).sum(3)
        rows = real.unflatten(-1, (9, 10)).sum(-1)[..., None].clamp(min=1)
        torch.testing.assert_close(seen.map, bins / rows, **close)
        assert torch.isinf(seen.lse[~real.expand_as(seen.lse)]).all()
        torch.testing.assert_close(layer.weights.received(), seen.received, **close)


def test_sinks_and_their_mass() -> None:
    model, given = tiny("gpt_oss"), inputs(40)
    trace, _ = watched(model, **given, observe=regard.Observe(sink=True))
    eager = output(model, "eager", **given, output_attentions=True)
    for layer, attention in zip(trace, eager.attentions, strict=True):
        missing = 1 - attention.sum(-1)
        assert missing.max() > 0.1
        torch.testing.assert_close(layer.observation.sink, missing, atol=1e-5, rtol=1e-4)


def test_decoding_with_a_cache() -> None:
    model, given = tiny("llama"), inputs(12, "left")
    with torch.no_grad():
        past = getattr(model(**given), CACHE)
    step = {"input_ids": torch.tensor([[5], [6]]), CACHE: copy.deepcopy(past)}
    mask = torch.cat([given["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    eager = output(
        model,
        "eager",
        **(step | {CACHE: past}),
        attention_mask=mask,
        output_attentions=True,
    )
    trace, _ = watched(model, **step, attention_mask=mask)
    assert trace[0].weights.shape == (2, 4, 1, 13)
    assert worst_weight(trace, eager.attentions, torch.ones(2, 1, dtype=torch.bool)) < WEIGHT


def test_the_comparison_can_fail() -> None:
    model, given = tiny("llama"), inputs(60)
    eager = output(model, "eager", **given, output_attentions=True)
    trace, _ = watched(model, input_ids=given["input_ids"].flip(1))
    real = given["attention_mask"].bool()
    assert worst_weight(trace, eager.attentions, real) > 100 * WEIGHT
    assert worst_weight(trace, watched_twice(model, given), real) > 100 * WEIGHT


def watched_twice(model: Any, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The weights of a trace, with the heads in another order."""
    trace, _ = watched(model, **given)
    return [layer.weights[..., :, :].roll(1, dims=1) for layer in trace]
