"""Models trained, compiled and packed with regard's attention."""

from typing import Any

import pytest
import torch
from families import CROSSING, build, given_to
from tiny_models import VOCABULARY, difference, hidden, inputs, output
from torch.nn.functional import cross_entropy, mse_loss

from regard._watch import interface

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

RELATIVE = 1e-5
TRAINED = [
    "bart",
    "deepseekv3",
    "distilbert",
    "gemma2",
    "gpt2",
    "gptoss",
    "inkling",
    "llama",
    "mistral",
    "modernbert",
    "qwen3moe",
    "t5",
    "vit",
    "wav2vec2",
]


@pytest.fixture(autouse=True)
def registered() -> None:
    interface.register()


def loss_of(model: Any, family: str) -> torch.Tensor:
    """Of the next token; or, without a vocabulary, the distance from noise.

    Padding counts for nothing: where a window shows it padding alone, eager makes up an average.
    """
    given = given_to(family, model, "right")
    result = hidden(model(**given))
    if result.shape[-1] == VOCABULARY:
        texts = given["decoder_input_ids" if family in CROSSING else "input_ids"]
        predictions = result[:, :-1].flatten(0, 1)
        return cross_entropy(predictions, texts[:, 1:].flatten(), ignore_index=0)
    target = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    if "attention_mask" in given:
        real = given["attention_mask"].bool()
        result, target = result[real], target[real]
    return mse_loss(result, target)


def gradients(family: str, attention: str) -> torch.Tensor:
    model = build(family)
    model.set_attn_implementation(attention)
    loss_of(model, family).backward()
    given = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten() for gradient in given])


def losses(family: str, attention: str) -> torch.Tensor:
    """Of ten steps; without dropout, which each attention draws in its own way."""
    model = build(family)
    model.set_attn_implementation(attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_of(model, family)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("family", TRAINED)
def test_gradients_are_those_of_eager(family: str) -> None:
    mine, theirs = gradients(family, "regard"), gradients(family, "eager")
    assert (mine - theirs).abs().max() < RELATIVE * theirs.abs().max()


@pytest.mark.parametrize("family", TRAINED)
def test_fine_tuning_follows_the_losses_of_eager(family: str) -> None:
    mine, theirs = losses(family, "regard"), losses(family, "eager")
    assert theirs[-1] < theirs[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", ["distilbert", "gemma2"])
def test_a_compiled_model_computes_what_it_computes_with_eager(family: str) -> None:
    model, given = build(family), inputs(150, "left")
    expected = hidden(output(model, "eager", **given))
    torch._dynamo.reset()
    model.set_attn_implementation("regard")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        found = hidden(compiled(**given))
    assert difference(found, expected, given["attention_mask"]) < RELATIVE


@pytest.mark.parametrize("family", ["llama", "t5", "vit"])
def test_inference_mode(family: str) -> None:
    model = build(family)
    given = given_to(family, model)
    expected = hidden(output(model, "eager", **given))
    model.set_attn_implementation("regard")
    with torch.inference_mode():
        found = hidden(model(**given))
    assert difference(found, expected, torch.ones(len(expected))) < RELATIVE


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral", "qwen3"])
def test_packed_texts_do_not_see_each_other(family: str) -> None:
    """As transformers' collator packs them: one row, positions from 0 again, lengths summed up."""
    model, lengths = build(family), [70, 13, 67]
    ids = inputs(150)["input_ids"][:1]
    alone = [hidden(output(model, "eager", input_ids=part)) for part in ids.split(lengths, dim=1)]
    summed = torch.tensor([0, 70, 83, 150], dtype=torch.int32)
    packed = output(
        model,
        "regard",
        input_ids=ids,
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seq_lens_q=summed,
        cu_seq_lens_k=summed,
        max_length_q=70,
        max_length_k=70,
        use_cache=False,
    )
    assert difference(hidden(packed), torch.cat(alone, dim=1), torch.ones(1)) < RELATIVE
