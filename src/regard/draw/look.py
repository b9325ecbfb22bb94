"""One text seen through one model, in the numbers that the terminal and the page draw.

A `Look` holds the lazy weights of every layer; a `Gaze` is one of its words, seen in both
directions. Both read rows, columns and statistics, never L x S of all heads at once.

Tokens become words on the way: weights on the tokens of a word are summed, the rows of a word's
tokens are averaged. Every head counts alike in a mean over heads and layers.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regard._errors import ModelError, OptionError, TextError
from regard._watch import Word
from regard._watch.at import SMALLEST
from regard._watch.means import summed
from regard._watch.words import repeats
from regard.draw.layer import Layer, visible

if TYPE_CHECKING:
    from regard._watch import Trace

LEAVE_OUT = frozenset({"first", "special"})
NOTHING: frozenset[str] = frozenset()


class HeadWeight(NamedTuple):
    """The weight that one head gives from the chosen word to another."""

    layer: int
    head: int
    word: int
    weight: float


@dataclass(frozen=True)
class LeftOut:
    """What the chosen word gives to keys that say little: shares of its whole weight."""

    first: float  # the first token, on which most heads of a causal model rest
    special: float  # the other special tokens
    learned: float  # a learned sink, which is no token


@dataclass(frozen=True, eq=False)
class Seen:
    """One word in one direction.

    Attributes:
        weight: (words,), mean over the heads.
        share: (words,), the same as a share of what was not left out; zero for what was.
        unseen: (words,), True where no head could see, whatever the weights.
        absent: (words,), True where the word was left out entirely.
        without: what was left out, "first" and "special".
    """

    weight: np.ndarray
    share: np.ndarray
    unseen: np.ndarray
    absent: np.ndarray
    without: frozenset[str]


@dataclass(frozen=True, eq=False)
class Look:
    """One text seen through one model.

    Attributes:
        model: its name.
        text: as it was given, or as its tokens spell it.
        tokens: (L,), the tokenizer's pieces.
        words: the words of the text, and special tokens, in order.
        layers: what is held; see `only`.
        given: how many of the tokens, all if None; the model itself put out those that follow.
    """

    model: str
    text: str
    tokens: tuple[str, ...]
    words: tuple[Word, ...]
    layers: tuple[Layer, ...]
    given: int | None = None

    @classmethod
    def of(cls, trace: "Trace", *, model: str, text: str | None = None, entry: int = 0) -> "Look":
        """What a trace of one run holds about one of its texts.

        Where it tells no words (of pixels, say, or without a tokenizer), each position is one, and
        its number its name.

        Args:
            text: what the tokens were made from; as they spell it unless given.
            entry: of the batch.

        Raises:
            ModelError: a layer is no self-attention over the text, or kept statistics only; the
                text is padded.
            TextError: text is not that of the tokens.
        """
        positions = trace.positions(entry)
        if positions.padding.any():
            raise ModelError(
                f"trace: text {entry} of the batch is padded, which is not shown; needs a run of "
                "it alone"
            )
        tokens, words, spelled = _spelled(trace, entry, text, len(positions))
        # Statistics of the last queries are not those of all; and those of the run are not of the
        # queries and keys that are held, where these were rounded.
        options = trace.options
        serve = options.get("observe", {}).get("received") == "all" and options.get("dtype") is None
        layers = []
        for seen in trace:
            weights = seen.weights[entry]
            _, rows, columns = weights.shape
            if (rows, columns) != (len(tokens), len(tokens)):
                raise ModelError(
                    f"{model}: {seen.name} attends from {rows:,} to {columns:,} positions; needs "
                    f"self-attention over the {len(tokens):,} tokens of the text"
                )
            known = seen.observation.each(lambda x: x[entry]) if serve else None
            layers.append(Layer(seen.number, seen.heads, weights, known))
        given = len(tokens) - int(positions.generated.sum())
        return cls(model, spelled, tokens, words, tuple(layers), given)

    def only(self, layers: Collection[int] | None = None, head: int | None = None) -> "Look":
        """The same text through some layers, or one head of each, numbered as the model does.

        Raises:
            OptionError: no such layer or head.
        """
        chosen = self.layers
        if layers is not None:
            held = {layer.number: layer for layer in self.layers}
            for number in layers:
                if number not in held:
                    raise no_layer(number, held, f"of {self.model} this run holds")
            chosen = tuple(held[number] for number in sorted(set(layers)))
        if head is not None:
            chosen = tuple(_one_head(layer, head, self.model) for layer in chosen)
        return replace(self, layers=chosen)

    @property
    def heads(self) -> int:
        """How many heads the means run over."""
        return sum(len(layer.heads) for layer in self.layers)

    @property
    def causal(self) -> bool:
        """Whether no query of any layer sees a later key."""
        last = np.arange(1, len(self.tokens) + 1)
        return all(bool((layer.sight.stop <= last).all()) for layer in self.layers)

    @property
    def generated(self) -> range:
        """The words that the model put out."""
        given = len(self.tokens) if self.given is None else self.given
        first = sum(word.start < given for word in self.words)
        return range(first, len(self.words))

    @cached_property
    def gaps(self) -> tuple[str, ...]:
        """(words,), what stands before each word in the text: nothing, spaces, new lines."""
        gaps: list[str] = []
        end, apart = 0, False
        for word in self.words:
            start = -1 if word.special else self.text.find(word.text, end)
            apart = apart or start < 0
            gap = self.text[end : max(start, end)]
            gaps.append(" " if apart and gaps and not gap else gap)
            end, apart = (start + len(word.text), False) if start >= 0 else (end, True)
        return tuple(gaps)

    @cached_property
    def repeats(self) -> list[int]:
        """(words,), which of the words that are named alike each is, from 1."""
        return repeats(self.words)

    def gaze(self, index: int) -> "Gaze":
        """A word, by its place among `words`, in both directions.

        Raises:
            TextError: no such word.
        """
        if not 0 <= index < len(self.words):
            raise TextError(f"word: got {index}; the text has words 0 to {len(self.words) - 1}")
        return Gaze(self, index)

    @cached_property
    def special(self) -> np.ndarray:
        """(words,), True for special tokens."""
        return np.array([word.special for word in self.words], bool)

    def by_word(self, x: np.ndarray) -> np.ndarray:
        """(..., L) summed over the tokens of each word: (..., words)."""
        return summed(x, np.array([(word.start, word.stop) for word in self.words]))

    def averaged(self, x: np.ndarray) -> np.ndarray:
        """(..., L) averaged over the tokens of each word: (..., words)."""
        mean: np.ndarray = self.by_word(x) / [word.stop - word.start for word in self.words]
        return mean

    @cached_property
    def first(self) -> np.ndarray:
        """(heads, words), the weight of each word's rows on the first token."""
        return self._column(slice(0, 1))

    @cached_property
    def specials(self) -> np.ndarray:
        """(heads, words), the weight of each word's rows on special tokens after the first."""
        total = np.zeros((self.heads, len(self.words)))
        for word in self.words[1:]:
            if word.special:
                total += self._column(slice(word.start, word.stop))
        return total

    @cached_property
    def learned(self) -> np.ndarray:
        """(heads, words), the weight of each word's rows on learned sinks."""
        return np.concatenate([self.averaged(layer.learned) for layer in self.layers])

    def _column(self, keys: slice) -> np.ndarray:
        """(heads, words), the weight of each word's rows on some keys."""
        every = slice(0, len(self.tokens))
        return np.concatenate(
            [self.averaged(layer.tile(every, keys).sum(axis=-1)) for layer in self.layers]
        )

    def information(self) -> np.ndarray:
        """(layers,), what the weights of each layer tell, in bits.

        For a row: the share m of its weight that is on neither the first, nor a special, nor a
        learned sink, times how far that part is from even, log2(n) - entropy over the n visible
        keys that remain. Averaged over heads and rows.
        """
        aside = [0, *(t for w in self.words[1:] if w.special for t in range(w.start, w.stop))]
        return np.array([layer.information(aside) for layer in self.layers])


class Gaze:
    """One word of a text in every layer and head, in both directions.

    Attributes:
        gives: (heads, words), weight from the word to each word; heads of all layers in order.
        gets: (heads, words), weight from each word to the word.
    """

    def __init__(self, look: Look, index: int) -> None:
        self.look, self.index, self.word = look, index, look.words[index]
        own, every = slice(self.word.start, self.word.stop), slice(0, len(look.tokens))
        rows = [layer.tile(own, every).mean(axis=1) for layer in look.layers]
        self.gives = look.by_word(np.concatenate(rows))
        self.gets = look._column(own)

    @property
    def left_out(self) -> LeftOut:
        look = self.look
        first, special, learned = (
            float(x[:, self.index].mean()) for x in (look.first, look.specials, look.learned)
        )
        return LeftOut(first, special, learned)

    def looks_at(self, without: frozenset[str] = LEAVE_OUT) -> Seen:
        """What the word gives to each word."""
        weight = self.gives.mean(axis=0)
        kept = self._kept(without).mean(axis=0)
        rest = kept.sum()
        share = kept / rest if rest > SMALLEST else np.zeros_like(kept)
        unseen = self._unseen(slice(self.word.start, self.word.stop, 1), None)
        return Seen(weight, share, unseen, self._absent_keys(without), without)

    def looked_at_by(self, without: frozenset[str] = LEAVE_OUT) -> Seen:
        """What the word gets from each word, of what that word gives to what is not left out.

        If the word itself would be left out, nothing is: the question is about it.
        """
        look = self.look
        if self._absent_keys(without)[self.index]:
            without = NOTHING
        weight = self.gets.mean(axis=0)
        kept, rest = weight.copy(), np.ones_like(weight) - look.learned.mean(axis=0)
        if "first" in without:
            rest -= look.first.mean(axis=0)
            if self.word.start == 0:
                kept -= look.first.mean(axis=0)
        absent = np.zeros(len(look.words), bool)
        if "special" in without:
            rest -= look.specials.mean(axis=0)
            absent = look.special
        share = np.where((rest > SMALLEST) & ~absent, kept / np.maximum(rest, SMALLEST), 0.0)
        unseen = self._unseen(None, slice(self.word.start, self.word.stop, 1))
        return Seen(weight, share.clip(0.0), unseen, absent, without)

    def strongest(self, count: int, word: int | None = None, away: bool = True) -> list[HeadWeight]:
        """The greatest weights in single heads, in falling order.

        Args:
            count: how many.
            word: between the chosen word and this one; any that is not left out unless given.
            away: what the chosen word gives; what it gets if False.
        """
        weights = self.gives if away else self.gets
        if word is None:
            weights = weights * ~self._absent_keys(LEAVE_OUT)
        words = np.arange(len(self.look.words)) if word is None else np.array([word])
        flat = weights[:, words].ravel()
        order = np.argsort(-flat, kind="stable")[:count]
        heads = [(layer.number, head) for layer in self.look.layers for head in layer.heads]
        return [
            HeadWeight(layer, head, int(words[at % len(words)]), float(flat[at]))
            for at in order
            for layer, head in [heads[at // len(words)]]
            if flat[at] > SMALLEST
        ]

    def _kept(self, without: frozenset[str]) -> np.ndarray:
        """(heads, words), what the word gives to tokens that are not left out."""
        kept = self.gives.copy()
        if "first" in without:
            kept[:, 0] -= self.look.first[:, self.index]
        if "special" in without:
            kept[:, 1:][:, self.look.special[1:]] = 0.0
        return kept.clip(0.0)

    def _absent_keys(self, without: frozenset[str]) -> np.ndarray:
        """(words,), True where all tokens of a word are left out."""
        absent = np.zeros(len(self.look.words), bool)
        if "special" in without:
            absent[1:] = self.look.special[1:]
        absent[0] = "first" in without and self.look.words[0].stop == 1
        return absent

    def _unseen(self, rows: slice | None, columns: slice | None) -> np.ndarray:
        """(words,), True where no head may see from these rows, or to these columns."""
        look, every = self.look, slice(0, len(self.look.tokens), 1)
        across = 0 if rows is not None else 1
        seen = np.zeros(len(look.tokens), bool)
        for layer in look.layers:
            here = visible(layer.weights.problem, rows or every, columns or every)
            seen |= here.any(axis=(0, 1 + across))
        hidden: np.ndarray = look.by_word(seen.astype(np.float64)) == 0
        return hidden


def has_words(trace: "Trace", entry: int = 0) -> bool:
    """Whether a trace tells the words that were read."""
    try:
        return bool(trace.words(entry))
    except TextError:
        return False


Spelled = tuple[tuple[str, ...], tuple[Word, ...], str]


def _spelled(trace: "Trace", entry: int, text: str | None, count: int) -> Spelled:
    """Tokens, words and text of what was read, which has so many positions."""
    try:
        words = tuple(trace.words(entry, text))
    except TextError:
        if text is not None:
            raise
        numbers = tuple(map(str, range(count)))
        return numbers, tuple(Word(x, i, i + 1) for i, x in enumerate(numbers)), " ".join(numbers)
    return tuple(trace.tokens(entry)), words, trace.text(entry) if text is None else text


def no_layer(number: int, there: Collection[int], whose: str) -> OptionError:
    """The error about a layer that is not among those that are there."""
    return OptionError(f"layer: got {number}; {whose} {_listed('layer', there)}")


def no_head(head: int, there: Collection[int], whose: str) -> OptionError:
    return OptionError(f"head: got {head}; {whose} {_listed('head', there)}")


def _listed(name: str, there: Collection[int]) -> str:
    *numbers, last = sorted(there)
    if len(there) == last + 1:
        return f"{name}s 0 to {last}"
    return f"{name}s {', '.join(map(str, numbers))} and {last}" if numbers else f"{name} {last}"


def _one_head(layer: Layer, head: int, model: str) -> Layer:
    if head not in layer.heads:
        whose = f"of layer {layer.number} of {model} this run holds"
        raise no_head(head, layer.heads, whose)
    place = layer.heads.index(head)
    one = slice(place, place + 1)
    seen = layer.observation and layer.observation.each(lambda x: x[one])
    return Layer(layer.number, (head,), layer.weights[one], seen)
