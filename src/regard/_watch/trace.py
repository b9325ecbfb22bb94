"""What was seen of one run of a model."""

from collections.abc import Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from regard._errors import LayerError, ModelError, OptionError, TextError
from regard._watch.answers import Answers
from regard._watch.layer import Layer
from regard._watch.words import Word, words

if TYPE_CHECKING:
    from regard._watch.passage import Passage
    from regard._watch.record import Record


class Trace(Answers, Sequence[Layer]):
    """The attentions of one run, in the order in which they first ran.

    `trace[3]`, `trace[-1]` and `trace["model.layers.3.self_attn"]` give a `Layer`. Numbers are the
    model's: where only some layers were watched, the others are left out.

    Attributes:
        token_ids: (batch, L), what the model read in all forward passes; None for other inputs.
            A token that was generated last has been read by nobody, and is not among them.
        decoder_token_ids: likewise, what the decoder of an encoder-decoder read.
        attention_mask: (batch, positions), the last one that the model was called with.
        decoder_attention_mask: likewise, of the decoder.
        passes: how many tokens each forward pass read, of the "input" and of the "decoder".
        start: the position of the first token: other than 0 if the run began with a filled cache.
        model: what the model was: its class, its name and revision, versions of libraries.
    """

    def __init__(self, tokenizer: Any = None, model: dict[str, str] | None = None) -> None:
        self.token_ids: Any = None
        self.decoder_token_ids: Any = None
        self.attention_mask: Any = None
        self.decoder_attention_mask: Any = None
        self.passes: dict[str, list[int]] = {}
        self.start = 0
        self.model = model or {}
        self._tokenizer = tokenizer
        self._hosts: dict[str, str] = {}
        self._entries: dict[str, Record | Layer] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the layers that are held."""
        return tuple(entry.number for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Layer]:
        return map(_layer, self._entries.values())

    def __getitem__(self, which: Any) -> Any:
        """A layer by number or name; negative numbers count from the last one held.

        Raises:
            LayerError: there is none such; the message says which there are.
            ModelError: no forward pass ran.
        """
        if not self._entries:
            raise ModelError("trace: is empty; call the model inside `with regard.watch(...)`")
        if isinstance(which, str):
            if which not in self._entries:
                raise LayerError(f'layer: got "{which}"; the names are {", ".join(self.names)}')
            return _layer(self._entries[which])
        number = index(which)
        if -len(self) <= number < 0:
            number = self.numbers[number]
        for entry in self._entries.values():
            if entry.number == number:
                return _layer(entry)
        raise LayerError(f"layer: got {which}; needs {_told(self.numbers)}")

    def add(self, entry: "Record | Layer") -> None:
        """Appends a layer, or the record that one day is one."""
        self._entries[entry.name] = entry

    def read(self, passage: "Passage") -> None:
        """Notes what a forward pass reads, once for each model within the model."""
        if passage.ids is None:
            return
        name = "decoder_token_ids" if passage.sequence == "decoder" else "token_ids"
        if self._hosts.setdefault(name, passage.host) != passage.host:
            return
        import torch

        before = getattr(self, name)
        ids = passage.ids.detach()
        setattr(self, name, ids if before is None else torch.cat([before, ids], -1))
        self.passes.setdefault(passage.sequence, []).append(ids.shape[-1])
        if name == "token_ids":
            self.start = passage.start if before is None else self.start
            self.attention_mask = passage.attention_mask
        else:
            self.decoder_attention_mask = passage.attention_mask

    def __repr__(self) -> str:
        return f"Trace({len(self)} layers)"

    def tokens(self, entry: int = 0, *, decoder: bool = False) -> list[str]:
        """The tokens of a batch entry as the tokenizer writes them, padding included.

        Raises:
            TextError: no tokenizer was given, or the model was not called with tokens.
            OptionError: there is no such batch entry.
        """
        ids = self._ids(entry, decoder)
        found: list[str] = self._tokenizer_or_error().convert_ids_to_tokens(ids)
        return found

    def words(
        self, entry: int = 0, text: str | None = None, *, decoder: bool = False
    ) -> list[Word]:
        """The words of a batch entry; start and stop count tokens, padding included.

        Args:
            entry: of the batch.
            text: what the tokens were made from; with it words appear as they were written.
            decoder: those that the decoder of an encoder-decoder read.

        Raises:
            As `tokens`; TextError also if the text has other tokens.
        """
        return words(self._ids(entry, decoder), self._tokenizer_or_error(), text)

    def _tokenizer_or_error(self) -> Any:
        if self._tokenizer is None:
            raise TextError("tokenizer: none was given; needs regard.watch(model, tokenizer=...)")
        return self._tokenizer

    def _ids(self, entry: int, decoder: bool) -> list[int]:
        ids = self.decoder_token_ids if decoder else self.token_ids
        if ids is None:
            called = "has no decoder that was" if decoder else "the model was not"
            raise TextError(f"trace: holds no tokens; {called} called with input_ids")
        count = len(ids)
        if not -count <= entry < count:
            raise OptionError(f"entry: got {entry}; needs a number from {-count} to {count - 1}")
        found: list[int] = ids[entry].tolist()
        return found


def _layer(entry: "Record | Layer") -> Layer:
    return entry if isinstance(entry, Layer) else entry.layer


def _told(numbers: Sequence[int]) -> str:
    if tuple(numbers) == tuple(range(len(numbers))):
        return f"a number from {-len(numbers)} to {len(numbers) - 1}"
    return f"one of {', '.join(map(str, numbers))}, which were watched"
