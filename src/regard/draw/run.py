"""A text run once through a model, to be looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regard._errors import ModelError, OptionError, TextError
from regard._observation import Observe
from regard._watch import Trace, Word, watch, words
from regard.draw.look import Look, no_head, no_layer


@dataclass(frozen=True)
class Reading:
    """A text that a model is about to read: all that can be said before it does.

    Attributes:
        model: of transformers, that takes one text.
        tokenizer: the model's.
        text: as it was given.
        name: what the model is called in drawings.
        inputs: what the model is called with: one token or more, no more than its context.
        words: of what is read, and special tokens.
        whole: how many tokens the text has; more than are read if its beginning alone is.
        generate: how many tokens the model is to add, at most.
    """

    model: Any
    tokenizer: Any
    text: str
    name: str
    inputs: Mapping[str, Any]
    words: Sequence[Word]
    whole: int
    generate: int = 0

    @property
    def count(self) -> int:
        """How many tokens are read."""
        return int(self.inputs["input_ids"].shape[-1])

    @property
    def is_cut(self) -> bool:
        """Whether the beginning of the text alone is read."""
        return self.count < self.whole

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
                raise no_layer(number, range(count), f"{self.name} has")
            if head is not None and isinstance(heads, int) and head not in range(heads):
                raise no_head(head, range(heads), f"each layer of {self.name} has")

    def run(self, observe: Observe | None = None, progress: bool = False) -> Trace:
        """The model's attention while it reads the text, and goes on with the likeliest token.

        A token more than asked for is generated and given up: nobody reads the last one, and all
        that were asked for are to be seen.

        Raises:
            ModelError: the model cannot be watched.
        """
        import torch

        # Without the head, whose output nobody asked for, if the text is only read.
        model = self.model if self.generate else self.model.base_model
        told = {"tokenizer": self.tokenizer, "progress": progress}
        with torch.no_grad(), watch(model, observe=observe, **told) as trace:
            if self.generate:
                model.generate(**self.inputs, max_new_tokens=self.generate + 1, do_sample=False)
            else:
                model(**self.inputs)
        trace.whole = self.whole if self.is_cut else None
        return trace

    def look(self, trace: Trace) -> Look:
        """What every layer and head made of the text, in a trace that `run` gave."""
        spelled = self.generate or self.is_cut
        return Look.of(trace, model=self.name, text=None if spelled else self.text)


def prepare(
    model: Any, tokenizer: Any, text: str, *, name: str, cut: bool = False, generate: int = 0
) -> Reading:
    """A text made ready for a model, which has computed nothing yet.

    The text goes in as it is, without a chat template. The tokenizer adds the special tokens that
    it always adds. The arguments are those of `Reading`.

    Args:
        cut: whether to read the beginning of a text that is longer than the model's context.

    Raises:
        TextError: the text is empty, or too long and not to be cut.
        ModelError: an encoder-decoder, or a model that is to generate and does not.
        OptionError: more tokens are to be generated than the model has room for.
    """
    if not text.strip():
        raise TextError("text: is empty; needs at least one word")
    if model.config.is_encoder_decoder:
        raise ModelError(f"model: {name} is an encoder-decoder; needs a model of one text")
    if generate and not model.can_generate():
        raise ModelError(f"generate: {name} does not generate text; needs a causal model")
    whole = len(tokenizer(text, verbose=False)["input_ids"])
    if not whole:
        raise TextError("text: holds nothing that the tokenizer knows; needs at least one token")
    room = _room(model, tokenizer)
    if room is not None and generate >= room:
        raise OptionError(f"generate: got {generate:,}; {name} takes at most {room:,} tokens")
    limit = whole if room is None else min(whole, room - generate)
    if limit < whole and not cut:
        generated = f", {generate:,} of them generated" if generate else ""
        raise TextError(f"text: has {whole:,} tokens; {name} takes at most {room:,}{generated}")
    cutting = {"truncation": True, "max_length": limit} if limit < whole else {}
    inputs = tokenizer(text, return_tensors="pt", verbose=False, **cutting).to(model.device)
    ids = inputs["input_ids"][0].tolist()
    found = words(ids, tokenizer, None if cutting else text)
    return Reading(model, tokenizer, text, name, inputs, found, whole, generate)


def telling_word(look: Look) -> int:
    """The word that a look is best begun with: the first that the model added, else the last."""
    added = [i for i in look.generated if any(c.isalnum() for c in look.words[i].text)]
    return next((i for i in added if not look.words[i].special), last_word(look.words))


def last_word(words: Sequence[Word]) -> int:
    """The last word that is neither a special token nor a mere mark, if there is one."""
    spoken = [i for i, word in enumerate(words) if not word.special]
    lettered = [i for i in spoken if any(c.isalnum() for c in words[i].text)]
    return (lettered or spoken or [len(words) - 1])[-1]


def _room(model: Any, tokenizer: Any) -> int | None:
    """How many tokens the model takes; None where nothing tells."""
    # Some models count positions from beyond zero, so that their tokenizer allows fewer.
    allowed = getattr(model.config, "max_position_embeddings", None)
    limits = [limit for limit in (allowed, tokenizer.model_max_length) if limit]
    return min(limits, default=None)
