"""A text run once through a model, to be looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regard._errors import ModelError, TextError
from regard._watch import Word, watch, words
from regard.draw.look import Look, no_head, no_layer


@dataclass(frozen=True)
class Reading:
    """A text that a model is about to read: all that can be said before it does.

    Attributes:
        model: of transformers, that takes one text.
        tokenizer: the model's.
        text: one token or more, and no more than the model's context.
        name: what the model is called in drawings.
        inputs: what the model is called with.
        words: of the text, and special tokens.
    """

    model: Any
    tokenizer: Any
    text: str
    name: str
    inputs: Mapping[str, Any]
    words: Sequence[Word]

    def check(self, layers: Sequence[int], head: int | None) -> None:
        """Refuses layers, and a head of them, that the model's configuration does not have.

        A configuration may count layers without attention, and says nothing of odd models: what it
        lets pass, `Look.only` still checks.

        Raises:
            OptionError: no such layer or head.
        """
        config = self.model.config
        count = getattr(config, "num_hidden_layers", None)
        heads = getattr(config, "num_attention_heads", None)
        for number in layers:
            if count and number not in range(count):
                raise no_layer(number, range(count), self.name)
            if head is not None and isinstance(heads, int) and head not in range(heads):
                raise no_head(head, number, range(heads), self.name)

    def look(self) -> Look:
        """What every layer and head makes of the text.

        Raises:
            ModelError: the model cannot be watched.
        """
        import torch

        body = self.model.base_model  # without the head, whose output nobody asked for
        with torch.no_grad(), watch(body, tokenizer=self.tokenizer) as trace:
            body(**self.inputs)
        return Look.of(trace, model=self.name, text=self.text)


def prepare(model: Any, tokenizer: Any, text: str, *, name: str) -> Reading:
    """A text made ready for a model, which has computed nothing yet.

    The text goes in as it is, without a chat template. The tokenizer adds the special tokens that
    it always adds. The arguments are those of `Reading`.

    Raises:
        TextError: the text is empty or too long.
        ModelError: an encoder-decoder.
    """
    if not text.strip():
        raise TextError("text: is empty; needs at least one word")
    if model.config.is_encoder_decoder:
        raise ModelError(f"model: {name} is an encoder-decoder; needs a model of one text")
    inputs = tokenizer(text, return_tensors="pt", verbose=False).to(model.device)
    ids = inputs["input_ids"][0].tolist()
    _check_length(len(ids), model, tokenizer, name)
    return Reading(model, tokenizer, text, name, inputs, words(ids, tokenizer, text))


def last_word(words: Sequence[Word]) -> int:
    """The last word that is neither a special token nor a mere mark, if there is one."""
    spoken = [i for i, word in enumerate(words) if not word.special]
    lettered = [i for i in spoken if any(c.isalnum() for c in words[i].text)]
    return (lettered or spoken or [len(words) - 1])[-1]


def _check_length(length: int, model: Any, tokenizer: Any, name: str) -> None:
    if not length:
        raise TextError("text: holds nothing that the tokenizer knows; needs at least one token")
    # Some models count positions from beyond zero, so that their tokenizer allows fewer.
    allowed = getattr(model.config, "max_position_embeddings", None)
    limits = [limit for limit in (allowed, tokenizer.model_max_length) if limit]
    if limits and length > min(limits):
        raise TextError(f"text: has {length:,} tokens; {name} takes at most {min(limits):,}")
