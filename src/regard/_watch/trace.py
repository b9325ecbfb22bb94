"""What was seen of one run of a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from regard._errors import LayerError, ModelError, OptionError, TextError
from regard._watch.answers import Answers
from regard._watch.layer import Layer
from regard._watch.words import Word, spelled, words

if TYPE_CHECKING:
    from regard._watch.passage import Passage
    from regard._watch.record import Record
    from regard._watch.trace_file import StoredLayer


@dataclass(frozen=True)
class StoredText:
    """What a tokenizer said of the tokens that one sequence of a batch or several hold.

    Attributes:
        tokens: by their number.
        words: of every batch entry.
        texts: of every batch entry; None in files that do not tell.
    """

    tokens: dict[str, str]
    words: list[list[Word]]
    texts: list[str] | None


@dataclass(frozen=True)
class Stored:
    """What a file knows that a watch had been told.

    Attributes:
        options: of the watch.
        text: of what the model read, and (True) of what its decoder did.
    """

    options: dict[str, Any]
    text: dict[bool, StoredText | None]


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
        whole: how many tokens the text had of which the model read the first, where that is known:
            `regard look --file` notes it.
        model: what the model was: its class, its name and revision, versions of libraries.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        model: dict[str, str] | None = None,
        stored: Stored | None = None,
    ) -> None:
        self.token_ids: Any = None
        self.decoder_token_ids: Any = None
        self.attention_mask: Any = None
        self.decoder_attention_mask: Any = None
        self.passes: dict[str, list[int]] = {}
        self.start = 0
        self.whole: int | None = None
        self.model = model or {}
        self._tokenizer = tokenizer
        self._stored = stored
        self._hosts: dict[str, str] = {}
        self._entries: dict[str, Record | StoredLayer | Layer] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the layers that are held."""
        return tuple(entry.number for entry in self._entries.values())

    @property
    def options(self) -> dict[str, Any]:
        """What was asked of the watch: observe, keep, dtype, layers, heads. Of a file that holds
        rounded queries and keys, dtype is what they were rounded to."""
        if self._stored:
            return self._stored.options
        from regard._watch.trace_text import options_of

        wanted = [entry.wanted for entry in self._entries.values() if hasattr(entry, "wanted")]
        return options_of(wanted[0]) if wanted else {}

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
        self.check_filled()
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

    def check_filled(self) -> None:
        """Raises ModelError: no forward pass ran."""
        if not self._entries:
            raise ModelError("trace: is empty; call the model inside `with regard.watch(...)`")

    def add(self, entry: "Record | StoredLayer | Layer") -> None:
        """Appends a layer, or the record that one day is one."""
        self._entries[entry.name] = entry

    def read(self, passage: "Passage", *, goes_on: bool = False) -> None:
        """Notes what a forward pass reads, once for each model within the model; whether it goes on
        within one of the whole model."""
        if passage.ids is None:
            return
        name = "decoder_token_ids" if passage.sequence == "decoder" else "token_ids"
        if self._hosts.setdefault(name, passage.host) != passage.host:
            return
        import torch

        before = getattr(self, name)
        ids = passage.ids.detach()
        setattr(self, name, ids if before is None else torch.cat([before, ids], -1))
        counts = self.passes.setdefault(passage.sequence, [])
        if goes_on:
            counts[-1] += ids.shape[-1]
        else:
            counts.append(ids.shape[-1])
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
        if text := self._text(decoder):
            return [text.tokens[str(i)] for i in ids]
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
        ids = self._ids(entry, decoder)
        if text is None and (stored := self._text(decoder)):
            return list(stored.words[entry])
        return words(ids, self._tokenizer_or_error(), text)

    def text(self, entry: int = 0, *, decoder: bool = False) -> str:
        """The text of a batch entry as its tokens spell it, a line break for each special token.

        Raises:
            As `tokens`.
        """
        ids = self._ids(entry, decoder)
        if stored := self._text(decoder):
            if stored.texts is not None:
                return stored.texts[entry]
            return " ".join(word.text for word in stored.words[entry])
        return spelled(ids, self._tokenizer_or_error())

    def save(self, path: Any, *, dtype: Any = None) -> None:
        """Writes the trace to a file, which replaces one of that name when all of it is written.

        A safetensors file: queries and keys, statistics, masks as descriptions, tokens, and words
        if there was a tokenizer.

        Args:
            path: where.
            dtype: what kept queries and keys are rounded to in the file: "float16", "bfloat16" or
                "float32"; weights are then those of the rounded numbers, statistics stay as they
                are. Nothing is rounded unless given.

        Raises:
            ModelError: no forward pass ran.
            OptionError: another dtype, or one that cannot hold the numbers.
            FileError: the file cannot be written; what was there before is still there.
        """
        from regard._watch.trace_file import save

        save(self, path, dtype)

    @classmethod
    def load(cls, path: Any, *, tokenizer: Any = None) -> "Trace":
        """Opens a trace that `save` wrote, by this version of regard or an older one.

        The file is mapped to memory: what is looked at is read, layer by layer. Nothing in it is
        executed. It may be replaced while it is open (`save` does that), but not cut short.

        Args:
            path: where.
            tokenizer: the model's; without one, `tokens` and `words` are those of the file.

        Raises:
            FileError: no such file, or no whole trace; here or, for faults of a layer, when that
                is first asked for.
            ModelError: torch or safetensors is not installed.
        """
        try:
            from regard._watch.trace_file import load
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModelError(
                "load: needs torch, which is not installed: pip install 'regard[torch]'"
            ) from None
        return load(path, tokenizer)

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Arrays by name, as `numpy.savez` takes them.

        Returns:
            "token_ids", "decoder_token_ids", "attention_mask", "decoder_attention_mask", as far as
            there are such; for layer 3 "layers.3.heads", the positions "layers.3.queries" and
            "layers.3.keys", and statistics with the shapes of `Observation`: "layers.3.lse",
            "layers.3.peak.key", ...

        Raises:
            ModelError: no forward pass ran.
        """
        from regard._watch.export import to_numpy

        return to_numpy(self)

    def to_json(self, path: Any = None) -> str | None:
        """Model, tokens, words, sentences and statistics as JSON; what is not finite is null.

        Statistics are those of `Observation`; lse and entropy are in nats.

        Args:
            path: where to write it; it is returned unless given.

        Raises:
            ModelError: no forward pass ran.
            FileError: the file cannot be written; what was there before is still there.
        """
        from regard._watch.export import to_json
        from regard._watch.files import replacing

        text = to_json(self)
        if path is None:
            return text
        with replacing(path) as stream:
            stream.write(text.encode())
        return None

    def to_pandas(self, *, top: int | None = None) -> Any:
        """A tidy table: a row for each query of each head, or for each of the keys it sees most.

        Args:
            top: how many keys of each query are a row each, 1 to 64; what the watch did not
                gather is computed from the weights.

        Returns:
            A DataFrame. layer, name, entry (of the batch), head, query (a position); token, word
            and word_number at it. Then padded, and of what was observed lse, entropy, sink,
            peak_weight, peak_key (a position, or -1) with peak_token, peak_word, peak_word_number,
            and received (of the key at the same position). With `top` instead rank, key, weight,
            key_token, key_word, key_word_number. Numbers of words are -1 where there is none.

        Raises:
            ModelError: no forward pass ran; pandas is not installed; with `top`, statistics alone
                were kept and have fewer keys.
            OptionError: `top` is not 1 to 64.
        """
        from regard._watch.export import to_pandas

        return to_pandas(self, top)

    def to_arrow(self, *, top: int | None = None) -> Any:
        """The table of `to_pandas` as a pyarrow Table, texts as dictionaries.

        Raises:
            As `to_pandas`.
        """
        from regard._watch.export import to_arrow

        return to_arrow(self, top)

    def _text(self, decoder: bool) -> StoredText | None:
        """What the file says in place of a tokenizer."""
        return self._stored.text[decoder] if self._stored and self._tokenizer is None else None

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


def _layer(entry: "Record | StoredLayer | Layer") -> Layer:
    return entry if isinstance(entry, Layer) else entry.layer


def _told(numbers: Sequence[int]) -> str:
    if tuple(numbers) == tuple(range(len(numbers))):
        return f"a number from {-len(numbers)} to {len(numbers) - 1}"
    return f"one of {', '.join(map(str, numbers))}, which were watched"
