"""The questions that a trace answers about tokens, words and heads."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from regard._arrays import float64
from regard._errors import OptionError, TextError
from regard._watch.at import At
from regard._watch.flow import rolled
from regard._watch.ledger import Positions, positions
from regard._watch.means import between
from regard._watch.reading import Reading
from regard._watch.scoring import HeadScores, scored
from regard._watch.sentences import Sentence, sentences

if TYPE_CHECKING:
    from regard._watch.trace import Trace


class Answers:
    """A part of `Trace`. Answers are NumPy arrays in float64, of one batch entry."""

    def at(self, which: Any, entry: int = 0, *, decoder: bool = False) -> At:
        """A word of the run, or a token, to ask what it gives and gets.

            trace.at("it").without_sink().gives(mean="all")      # (words,)
            trace.at("it#2").gets(layers=[3])                    # (1, heads, words)
            trace.at(-1).gives(by="token")                       # (layers, heads, tokens)

        Args:
            which: a word, "it#2" for the second of that name; or the number of a token among
                `trace.tokens`, negative from the end.
            entry: of the batch.
            decoder: among what the decoder of an encoder-decoder read.

        Raises:
            TextError: there is none such; OptionError: no such entry.
        """
        reading = self._reading(entry, decoder)
        return At(reading, reading.place(which))

    def between(
        self,
        rows: Any = "words",
        columns: Any = "words",
        entry: int = 0,
        *,
        layers: Any = None,
        heads: Any = None,
        mean: str | None = None,
        decoder: bool = False,
        cross: bool = False,
    ) -> np.ndarray:
        """How much weight runs of rows give to runs of columns, never by way of the whole matrix.

            trace.between("sentences", "sentences", mean="all")
            trace.between(["it"], ["trophy", "suitcase"], mean="heads")

        Args:
            rows, columns: "tokens", "words", "sentences"; a number of equal bins; or a list of
                words by name, words, sentences, and (start, stop) of tokens.
            entry: of the batch.
            layers, heads: numbers; all that are held unless given.
            mean: over "heads", key/value "groups" (the heads of each), "layers", or "all".
            decoder: the decoder's own tokens. cross: its rows, the encoder's columns.

        Returns:
            (layers, heads, n, m), without the axes of a mean: the mean over a run's queries of the
            weight on a run's keys. Queries that see no key are left out.

        Raises:
            LimitError: it would be more than 2**26 numbers.
            LayerError, OptionError, TextError, ModelError: as `At.gives`.
        """
        keys = self._reading(entry, False) if cross else None
        views = self._reading(entry, decoder or cross).views(layers, heads, keys)
        return between(views, rows, columns, mean)

    def rollout(
        self,
        which: Any,
        entry: int = 0,
        *,
        residual: float = 0.5,
        layers: Any = None,
        heads: Any = None,
        decoder: bool = False,
    ) -> np.ndarray:
        """Attention rollout (Abnar and Zuidema 2020): from where chosen tokens draw, through all
        layers.

        The rows of these tokens in the product of the layers' matrices, residual · I +
        (1 - residual) · mean of the heads, from the last layer that is held down to the first.
        Vectors times matrices, computed in blocks: one pass of the kernels for each head and
        64 rows, and memory for a few rows. Weight on a learned sink, or on what a cache held before
        the run, is lost on the way; no row is rescaled.

        Args:
            which: a word, the number of a token, or several numbers (a list, a range).
            entry: of the batch.
            residual: the share of a layer's input that goes past its attention.
            layers, heads: numbers; all that are held unless given.
            decoder: through the decoder's self-attention.

        Returns:
            (tokens,); for several numbers (n, tokens). The row of a word is the mean of its
            tokens'.

        Raises:
            LimitError: more than 2**26 numbers. Others as `At.gives`.
        """
        reading = self._reading(entry, decoder)
        several = not isinstance(which, str) and hasattr(which, "__len__")
        places = [reading.place(x) for x in which] if several else [reading.place(which)]
        tokens = np.array([token for place in places for token in place.tokens], np.int64)
        rows = rolled(reading.views(layers, heads), tokens, residual)
        if not several:
            return cast(np.ndarray, rows.mean(axis=0))
        stops = np.cumsum([len(place.tokens) for place in places])[:-1]
        return np.stack([part.mean(axis=0) for part in np.split(rows, stops)])

    def head_scores(
        self, entry: int = 0, *, layers: Any = None, heads: Any = None, decoder: bool = False
    ) -> HeadScores:
        """What kind of head each is: sink, previous token, duplicate token, induction, entropy,
        distance. Eight passes of the kernels for each layer, in memory that grows with L.

            scores = trace.head_scores()
            scores.previous                    # (layers, heads)
            scores.top("sink", 3)              # the three greatest: (layer, head, score)

        `regard.induction` asks this of a repeated random sequence, on which induction heads show.

        Args:
            entry: of the batch.
            layers, heads: numbers; all that are held unless given.
            decoder: of the decoder's self-attention.

        Raises:
            As `At.gives`.
        """
        reading = self._reading(entry, decoder)
        ids = self._trace.decoder_token_ids if decoder else self._trace.token_ids
        numbers = None if ids is None else float64(ids[reading.entry])
        return scored(reading, reading.views(layers, heads), numbers)

    def sentences(
        self, entry: int = 0, text: str | None = None, *, decoder: bool = False
    ) -> list[Sentence]:
        """The sentences of a batch entry; start and stop count tokens.

        A sentence ends after a terminal mark of any script with the quotes and brackets behind it,
        at a special token, and after a blank line. A full stop does not end one before a word in
        lower case or after a single capital; other abbreviations are not known.

        Args and errors: as `words`.
        """
        return sentences(self._trace.words(entry, text, decoder=decoder))

    def positions(self, entry: int = 0, *, decoder: bool = False) -> Positions:
        """Which tokens are padding, which were given and which generated, and where they stand.

        Raises:
            OptionError: there is no such entry; TextError: nothing tells of such tokens.
            ModelError: no forward pass ran.
        """
        trace = self._trace
        batch, count, start = self._extent(decoder)
        if not -batch <= entry < batch:
            raise OptionError(f"entry: got {entry}; needs a number from {-batch} to {batch - 1}")
        mask = trace.decoder_attention_mask if decoder else trace.attention_mask
        real = None if mask is None else mask[entry]
        return positions(start, count, real, trace.passes.get(_sequences(decoder)[0], []))

    def _extent(self, decoder: bool) -> tuple[int, int, int]:
        """The batch, how many tokens each entry has, and the position of the first.

        What has no tokens (vectors, pixels) has positions all the same.
        """
        trace = self._trace
        trace.check_filled()
        own = [x for x in trace if x.sequence in _sequences(decoder) and not x.cross]
        ids = trace.decoder_token_ids if decoder else trace.token_ids
        if ids is not None:
            batch, count = ids.shape
            starts = [layer.queries.start for layer in own if len(layer.queries) == count]
            return batch, count, next(iter(starts), trace.start)
        if not own:
            whose = "a decoder" if decoder else "an input"
            raise TextError(f"trace: holds neither tokens nor self-attention of {whose}")
        lse: Any = own[0].observation.lse
        return lse.shape[0], len(own[0].queries), own[0].queries.start

    def _reading(self, entry: int, decoder: bool) -> Reading:
        self.positions(entry, decoder=decoder)  # tells what is wrong
        return Reading(self._trace, entry % self._extent(decoder)[0], decoder)

    @property
    def _trace(self) -> "Trace":
        return cast("Trace", self)


def _sequences(decoder: bool) -> tuple[str, ...]:
    """Those of `Layer.sequence` that are meant."""
    return ("decoder",) if decoder else ("input", "other")
