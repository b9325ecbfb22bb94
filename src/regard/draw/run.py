"""A text run once through a model, to be looked at."""

from typing import TYPE_CHECKING, Any

from regard._errors import ModelError, TextError
from regard.draw.look import Look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from regard._watch import Word


def run(model: Any, tokenizer: Any, text: str, *, name: str) -> Look:
    """What every layer and head of a model makes of a text.

    The text goes in as it is, without a chat template. The tokenizer adds the special tokens that
    it always adds.

    Args:
        model: of transformers, that takes one text: no encoder-decoder.
        tokenizer: the model's.
        text: one token or more, and no more than the model's context.
        name: what the model is called in drawings.

    Raises:
        TextError: the text is empty or too long.
        ModelError: an encoder-decoder, or a model that cannot be watched.
    """
    import torch

    from regard._watch import watch

    if not text.strip():
        raise TextError("text: is empty; needs at least one word")
    if model.config.is_encoder_decoder:
        raise ModelError(f"model: {name} is an encoder-decoder; needs a model of one text")
    inputs = tokenizer(text, return_tensors="pt", verbose=False)
    _check_length(inputs, model, tokenizer, name)
    body = model.base_model  # without the head, whose output nobody asked for
    with torch.no_grad(), watch(body, tokenizer=tokenizer) as trace:
        body(**inputs.to(body.device))
    return Look.of(trace, model=name, text=text)


def last_word(words: "Sequence[Word]") -> int:
    """The last word that is neither a special token nor a mere mark, if there is one."""
    spoken = [i for i, word in enumerate(words) if not word.special]
    lettered = [i for i in spoken if any(c.isalnum() for c in words[i].text)]
    return (lettered or spoken or [len(words) - 1])[-1]


def _check_length(inputs: "Mapping[str, Any]", model: Any, tokenizer: Any, name: str) -> None:
    length = inputs["input_ids"].shape[-1]
    if not length:
        raise TextError("text: holds nothing that the tokenizer knows; needs at least one token")
    # Some models count positions from beyond zero, so that their tokenizer allows fewer.
    allowed = getattr(model.config, "max_position_embeddings", None)
    limits = [limit for limit in (allowed, tokenizer.model_max_length) if limit]
    if limits and length > min(limits):
        raise TextError(f"text: has {length:,} tokens; {name} takes at most {min(limits):,}")
