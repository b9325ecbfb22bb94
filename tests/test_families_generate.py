"""Generation with regard's attention: the tokens of eager, and its logits at every step."""

from typing import Any

import pytest
import torch
from families import CROSSING, DECODERS, REFERENCE, build, given_to
from tiny_models import difference, inputs

from regard._watch import interface

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

RELATIVE = 1e-5
STEPS = 5


@pytest.fixture(autouse=True)
def registered() -> None:
    interface.register()


def generated(model: Any, attention: str, given: dict[str, Any], **options: Any) -> Any:
    model.set_attn_implementation(attention)
    return model.generate(
        **given,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def assert_same_steps(model: Any, family: str, given: dict[str, Any], **options: Any) -> None:
    """The same tokens, from logits that agree at every step."""
    reference = generated(model, REFERENCE.get(family, "eager"), given, **options)
    other = generated(model, "regard", given, **options)
    assert_same_logits(other, reference)


def assert_same_logits(other: Any, reference: Any) -> None:
    assert len(other.logits) == STEPS
    real = torch.ones(len(reference.logits[0]))
    for mine, theirs in zip(other.logits, reference.logits, strict=True):
        assert difference(mine, theirs, real) < RELATIVE
    assert torch.equal(other.sequences, reference.sequences)


# The first entry of the batch is full, the second is padded on the left.
@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family: str) -> None:
    assert_same_steps(build(family), family, given_to(family, None, "left"))


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_with_a_static_cache(family: str) -> None:
    model = build(family)
    if not model._can_compile_fullgraph:
        pytest.skip("transformers gives this family no static cache")
    options = {"cache_implementation": "static", "disable_compile": True}
    assert_same_steps(model, family, given_to(family, None, "left"), **options)


@pytest.mark.parametrize("family", ["deepseekv3", "gemma2", "gptoss", "llama", "mistral"])
def test_decoders_whose_prompt_comes_in_chunks(family: str) -> None:
    """Each chunk of 40 tokens sees those before it through the cache, and may see padding alone."""
    model, given = build(family), given_to(family, None, "left")
    whole, parts = (
        generated(model, attention, given, **options)
        for attention, options in (("eager", {}), ("regard", {"prefill_chunk_size": 40}))
    )
    assert_same_logits(parts, whole)


# Pop2Piano generates from sound and not from tokens.
@pytest.mark.parametrize("family", sorted(CROSSING.keys() - {"pop2piano"}))
def test_encoder_decoders(family: str) -> None:
    given = inputs(150, "right")
    given["decoder_input_ids"] = inputs(135)["input_ids"]
    assert_same_steps(build(family), family, given)
