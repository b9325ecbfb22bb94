"""One word of a run: what it gives attention to, and what gives attention to it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regard._errors import OptionError
from regard._watch.means import averaged, check_mean, summed
from regard._watch.reading import Place, Reading, View, runs
from regard._watch.words import Word

SMALLEST = 1e-6  # a rest below this is rounding, and is not blown up to shares


@dataclass(frozen=True, eq=False)
class At:
    """A word, or a token, of one batch entry.

    Weights on the tokens of a word are summed; the rows of a word's tokens are averaged. Answers
    are NumPy arrays in float64. What a cache held before the run has no tokens here: weights on it
    belong to no word.
    """

    _reading: Reading
    _place: Place
    _leaves_out: bool = False

    @property
    def word(self) -> Word | None:
        """The word, or that in which the token lies; None where words are not known."""
        return self._place.word

    @property
    def index(self) -> int | None:
        """The word's number among `trace.words`."""
        return self._place.number

    @property
    def tokens(self) -> range:
        return self._place.tokens

    def without_sink(self) -> "At":
        """The same, but first and special tokens are left out and the rest is rescaled.

        Most heads of a causal model rest on the first token where they have nothing to look at;
        it, and special tokens ([CLS], <|im_start|>), would outshine all else. `gives` is then zero
        for them and sums to 1. `gets` is what the word gets of what others give to keys that are
        not left out; special tokens then give nothing. If the word itself would be left out
        entirely, `gets` is as without this: the question is about it. Shares are taken of means,
        not means of shares; weight on a learned sink is in no share.
        """
        return replace(self, _leaves_out=True)

    def gives(
        self,
        layers: Any = None,
        heads: Any = None,
        *,
        by: str | None = None,
        mean: str | None = None,
        cross: bool = False,
    ) -> np.ndarray:
        """The weight that the word gives to each word.

        Args:
            layers, heads: numbers; all that are held unless given.
            by: "word" or "token"; words unless these are not known.
            mean: over "heads", key/value "groups" (the heads of each), "layers", or "all".
            cross: of a decoder's word, to the words that the encoder read.

        Returns:
            (layers, heads, words), or (layers, heads, tokens); without the axes of a mean.

        Raises:
            LayerError, OptionError: no such layer or head; an argument outside its range.
            ModelError: the run kept statistics only. TextError: words are not known.
        """
        check_mean(mean)
        keys = self._other(decoder=False) if cross else self._reading
        views = self._reading.views(layers, heads, keys if cross else None)
        x = averaged(views, (view.mean_row(self.tokens) for view in views), mean)
        if self._leaves_out:
            x = x * ~_left_out(keys)
            x = _share(x, x.sum(axis=-1, keepdims=True))
        return summed(x, _spans(keys)) if _by_word(keys, by) else x

    def gets(
        self,
        layers: Any = None,
        heads: Any = None,
        *,
        by: str | None = None,
        mean: str | None = None,
        cross: bool = False,
    ) -> np.ndarray:
        """The weight that each word gives to this one.

        Args:
            As `gives`; cross: of a word that the encoder read, from the decoder's words.

        Returns:
            As `gives`.

        Raises:
            As `gives`.
        """
        check_mean(mean)
        queries = self._other(decoder=True) if cross else self._reading
        views = queries.views(layers, heads, self._reading if cross else None)
        by_word = _by_word(queries, by)

        def gathered(columns: list[np.ndarray]) -> np.ndarray:
            if by_word:
                spans = _spans(queries)
                columns = [summed(x, spans) / (spans[:, 1] - spans[:, 0]) for x in columns]
            return averaged(views, columns, mean)

        gone = _left_out(self._reading)
        own = np.zeros(self._reading.count, bool)
        own[self.tokens.start : self.tokens.stop] = True
        if not self._leaves_out or gone[own].all():
            return gathered([view.columns(runs(own)) for view in views])
        share = _share(
            gathered([view.columns(runs(own & ~gone)) for view in views]),
            gathered([1.0 - v.learned() - v.columns(runs(_seen(gone, v))) for v in views]),
        )
        special = queries.special
        silent = summed(special, _spans(queries)) > 0 if by_word else special
        return np.asarray(share * ~silent)

    def to_pandas(self, layers: Any = None, heads: Any = None, *, by: str | None = None) -> Any:
        """Both directions as a tidy table: a row for each word of each head.

        Args:
            As `gives`.

        Returns:
            A DataFrame: layer, head, number (of the word or token), word or token, gives, gets.

        Raises:
            As `gives`; ModelError also if pandas is not installed.
        """
        from regard._watch.export import library

        pandas = library("pandas", "to_pandas")
        gives, gets = (ask(layers, heads, by=by) for ask in (self.gives, self.gets))
        views = self._reading.views(layers, heads)
        of = np.array([(view.layer.number, head) for view in views for head in view.heads])
        count = gives.shape[-1]
        columns: dict[str, Any] = dict(zip(("layer", "head"), of.repeat(count, 0).T, strict=True))
        columns["number"] = np.tile(np.arange(count), len(of))
        if _by_word(self._reading, by):
            columns["word"] = [word.text for word in self._reading.words] * len(of)
        elif self._reading.has_words:
            columns["token"] = self._reading.tokens * len(of)
        return pandas.DataFrame(columns | {"gives": gives.ravel(), "gets": gets.ravel()})

    def rollout(self, **options: Any) -> np.ndarray:
        """`trace.rollout` from here; see there."""
        reading, tokens = self._reading, self.tokens
        trace = reading.trace
        rows = trace.rollout(tokens, reading.entry, decoder=reading.decoder, **options)
        return np.asarray(rows.mean(axis=0))

    def _other(self, *, decoder: bool) -> Reading:
        if self._reading.decoder is decoder:
            whose = "input" if decoder is False else "decoder"
            raise OptionError(f"cross: this word is the {whose}'s own; see `trace.at(decoder=...)`")
        return Reading(self._reading.trace, self._reading.entry, decoder)

    def __repr__(self) -> str:
        named = "" if self.word is None else f'"{self.word.text}", '
        out = ", without sink" if self._leaves_out else ""
        return f"At({named}tokens {self.tokens.start} to {self.tokens.stop - 1}{out})"


def _by_word(reading: Reading, by: str | None) -> bool:
    if by not in (None, "word", "token"):
        raise OptionError(f'by: got {by!r}; needs "word" or "token"')
    return reading.has_words if by is None else by == "word"


def _spans(reading: Reading) -> np.ndarray:
    return np.array([(word.start, word.stop) for word in reading.words])


def _left_out(reading: Reading) -> np.ndarray:
    """(tokens,), True for the first and for special tokens."""
    gone = reading.special.copy()
    gone[reading.first : reading.first + 1] = True
    return gone


def _seen(gone: np.ndarray, view: View) -> np.ndarray:
    """Without padding, which has no weight and may be long."""
    return np.asarray(gone & view.keys.ledger.real)


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    enough = rest > SMALLEST
    return np.asarray(np.where(enough, part / np.where(enough, rest, 1.0), 0.0).clip(0.0))
