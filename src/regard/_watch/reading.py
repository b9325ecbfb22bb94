"""One sequence of a run, an entry of the batch: its tokens and words, and where its layers have
them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from regard._arrays import float64
from regard._errors import LayerError, OptionError, TextError
from regard._problem import Problem
from regard._watch.layer import Layer, heads_per_group
from regard._watch.ledger import Positions
from regard._watch.words import Word, find
from regard._weights import Weights

if TYPE_CHECKING:
    from regard._watch.trace import Trace

Span = tuple[int, int]
SOME = 2**22  # numbers of a tile that are held at once: 32 MB in float64, and a few such


class Place(NamedTuple):
    """A word or token of a reading: its tokens, and the word that they are, or lie in."""

    tokens: range
    word: Word | None
    number: int | None  # of the word


@dataclass(frozen=True, eq=False)
class Reading:
    """The sequence that a model, or the decoder of an encoder-decoder, read.

    Attributes:
        entry: of the batch, not negative.
        decoder: whether it is the decoder's.
    """

    trace: "Trace"
    entry: int
    decoder: bool

    @cached_property
    def ledger(self) -> Positions:
        return self.trace.positions(self.entry, decoder=self.decoder)

    @property
    def count(self) -> int:
        return len(self.ledger)

    @cached_property
    def words(self) -> list[Word]:
        return self.trace.words(self.entry, decoder=self.decoder)

    @property
    def tokens(self) -> list[str]:
        return self.trace.tokens(self.entry, decoder=self.decoder)

    @cached_property
    def has_words(self) -> bool:
        try:
            return bool(self.words)
        except TextError:  # no tokens, or nobody to tell what they are
            return False

    @cached_property
    def first(self) -> int:
        """The first token that is no padding."""
        return int(self.ledger.real.argmax()) if self.count else 0

    @cached_property
    def special(self) -> np.ndarray:
        """(tokens,), True for special tokens; all False where no tokenizer tells."""
        found = np.zeros(self.count, bool)
        for word in self.words if self.has_words else ():
            found[word.start : word.stop] = word.special
        return found

    def place(self, which: Any) -> Place:
        """A word by its name, as `words.find` takes it, or a token by its number.

        Raises:
            TextError: there is none such.
        """
        if isinstance(which, str):
            at = find(self.words, which)
            return Place(range(self.words[at].start, self.words[at].stop), self.words[at], at)
        try:
            token = index(which)
        except TypeError:
            kind = type(which).__name__
            raise TextError(f"at: got {kind}; needs a word, or the number of a token") from None
        if not -self.count <= token < self.count:
            raise TextError(
                f"token: got {token}; needs a number from {-self.count} to {self.count - 1}"
            )
        token %= self.count
        if not self.has_words:
            return Place(range(token, token + 1), None, None)
        at = next(i for i, word in enumerate(self.words) if word.stop > token)
        return Place(range(token, token + 1), self.words[at], at)

    def views(
        self, layers: Any = None, heads: Any = None, keys: "Reading | None" = None
    ) -> list["View"]:
        """Its layers: self-attention, or with `keys` those that attend to that other reading.

        Args:
            layers: numbers or names; all unless given.
            heads: numbers, as the model counts; all that are held unless given.

        Raises:
            LayerError: there is no such layer; OptionError: no such head.
        """
        fit = [layer for layer in self.trace if self._fits(layer, keys)]
        kind = "attends to the input" if keys is not None else f"is self-attention of {self}"
        if not fit:
            raise LayerError(f"layers: none that was watched {kind}")
        if layers is not None:
            chosen = [layers] if isinstance(layers, (str, int)) else list(layers)
            wanted = {self.trace[which].number: which for which in chosen}
            held = {layer.number for layer in fit}
            for number, which in wanted.items():
                if number not in held:
                    raise LayerError(f"layers: {which!r} is not among those that {kind}")
            fit = [layer for layer in fit if layer.number in wanted]
        return [View(layer, self, self if keys is None else keys, heads) for layer in fit]

    def _fits(self, layer: Layer, keys: "Reading | None") -> bool:
        names = ("decoder",) if self.decoder else ("input", "other")
        if layer.sequence not in names or layer.cross != (keys is not None):
            return False
        if keys is not None and len(layer.keys) != keys.count:
            return False
        return len(layer.queries) == self.count

    def __str__(self) -> str:
        return "the decoder's tokens" if self.decoder else "the tokens that the model read"


class View:
    """One layer of a reading: the weights of its entry, and where they have its tokens.

    Attributes:
        heads: numbers of the heads that were chosen, rising.
        parts: their weights, (heads, L, S) each: runs of heads that lie side by side.
        offset: the column of the first token of `keys`.
    """

    def __init__(self, layer: Layer, queries: Reading, keys: Reading, heads: Any = None) -> None:
        self.layer, self.queries, self.keys = layer, queries, keys
        places = _places(layer, heads)
        self.heads = tuple(layer.heads[place] for place in places)
        whole = layer.weights[queries.entry]
        self.parts: list[Weights] = [whole[start:stop] for start, stop in _runs(places)]
        self.offset = 0 if layer.cross else len(layer.keys) - queries.count
        self._groups = np.array(heads_per_group(whole.problem))[places]

    @property
    def group_of(self) -> np.ndarray:
        """(heads,), the number of each head's key/value group, from 0 without gaps."""
        return np.unique(self._groups, return_inverse=True)[1]

    def tile(self, rows: slice, columns: slice) -> np.ndarray:
        """(heads, rows, columns) of tokens in float64."""
        columns = slice(columns.start + self.offset, columns.stop + self.offset)
        return np.concatenate([float64(part[:, rows, columns]) for part in self.parts])

    def mean_row(self, rows: range) -> np.ndarray:
        """(heads, keys' tokens), the mean of a run of rows."""
        total = np.zeros((len(self.heads), self.keys.count))
        for block in blocks(rows, len(self.heads) * self.keys.count):
            total += self.tile(block, slice(0, self.keys.count)).sum(axis=1)
        return np.asarray(total / max(len(rows), 1))

    def columns(self, spans: Sequence[Span]) -> np.ndarray:
        """(heads, queries' tokens), the sum of some runs of columns."""
        rows = range(self.queries.count)
        total = np.zeros((len(self.heads), len(rows)))
        for start, stop in spans:
            for block in blocks(rows, len(self.heads) * (stop - start)):
                total[:, block] += self.tile(block, slice(start, stop)).sum(axis=-1)
        return total

    def learned(self) -> np.ndarray:
        """(heads, queries' tokens), the weight on a learned sink; 1 for a row that sees no key."""
        lse = [float64(part.lse()) for part in self.parts]
        onto = [learned(part.problem, x) for part, x in zip(self.parts, lse, strict=True)]
        return np.where(np.concatenate(lse) == -np.inf, 1.0, np.concatenate(onto))


def learned(problem: Problem, lse: np.ndarray) -> np.ndarray:
    """(heads, L), the weight on a learned sink, of which there is none where nothing is seen."""
    if problem.sinks is None:
        return np.zeros_like(lse)
    logits = float64(problem.sinks)[:, None]
    return np.asarray(np.exp(logits - np.where(np.isfinite(lse), lse, np.inf)))


def blocks(rows: range, width: int) -> Iterator[slice]:
    """A run of rows in pieces of at most `SOME` numbers, a row having so many."""
    step = max(SOME // max(width, 1), 1)
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def runs(flags: np.ndarray) -> list[Span]:
    """(start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _places(layer: Layer, heads: Any) -> list[int]:
    if heads is None:
        return list(range(len(layer.heads)))
    chosen: Collection[int] = {heads} if isinstance(heads, int) else set(heads)
    for head in sorted(chosen):
        if head not in layer.heads:
            held = ", ".join(map(str, layer.heads))
            raise OptionError(f"heads: got {head}; {layer.name} holds {held}")
    if not chosen:
        raise OptionError("heads: got none; needs one or more numbers")
    return [place for place, head in enumerate(layer.heads) if head in chosen]


def _runs(places: list[int]) -> list[Span]:
    flags = np.zeros(max(places, default=-1) + 1, bool)
    flags[places] = True
    return runs(flags)
