"""A long text as a whole: where its weight goes, which words get it, what each layer does.

Words do not fit here one by one. What most heads rest on where they have nothing to look at, the
first token, special tokens and learned sinks, is set aside, and told as a share of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from regard._arrays import float64
from regard._masks import Band, Padding
from regard._observation import Observe, bins
from regard._watch.means import summed
from regard._watch.scoring import mass
from regard.draw.layer import Layer
from regard.draw.look import Look

BINS = 256  # of the map, at most
NEAR = 64  # tokens on either side
LONGEST = 20  # characters of a word among others; an address may have hundreds


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer over the whole text.

    Attributes:
        number: as the model counts, from 0.
        heads: the numbers of the heads that are held.
        map: (bins, bins), the mean over the heads, and over the tokens of a bin, of the weight on
            another bin; without what is set aside.
        received: (tokens,), the weight that a token gets from all rows, the mean over the heads;
            zero for what is set aside.
        aside, near, far: (heads,), the shares of a row's weight on what is set aside, on the
            nearest tokens (`NEAR` on either side), and on all others: means over the rows.
        entropy_bits: (heads,), the mean over the rows.
    """

    number: int
    heads: tuple[int, ...]
    map: np.ndarray
    received: np.ndarray
    aside: np.ndarray
    near: np.ndarray
    far: np.ndarray
    entropy_bits: np.ndarray


@dataclass(frozen=True, eq=False)
class Overview:
    """A text seen as a whole through some layers.

    Attributes:
        look: the text and its words.
        layers: what each layer does with it.
        whole: how many tokens the text had of which the model read the first; None if it read all.
    """

    look: Look
    layers: tuple[LayerView, ...]
    whole: int | None = None

    @classmethod
    def of(cls, look: Look, whole: int | None = None) -> "Overview":
        """What the weights of a look say of its text, one layer after another.

        Raises:
            ModelError: weights of some layer are NaN.
        """
        return cls(look, tuple(_view(look, layer) for layer in look.layers), whole)

    @property
    def edges(self) -> np.ndarray:
        """(bins, 2), the tokens of each bin of the map: starts and stops."""
        return _edges(self.look)

    @cached_property
    def map(self) -> np.ndarray:
        """(bins, bins), the mean over the heads of all layers."""
        heads = [len(layer.heads) for layer in self.layers]
        return np.average([layer.map for layer in self.layers], axis=0, weights=heads)

    @cached_property
    def shares(self) -> np.ndarray:
        """(words,), the share that each gets of all weight that is not set aside."""
        heads = [len(layer.heads) for layer in self.layers]
        received = np.average([layer.received for layer in self.layers], axis=0, weights=heads)
        by_word = self.look.by_word(received)
        return np.asarray(by_word / max(by_word.sum(), np.finfo(float).tiny))

    def ranked(self, count: int) -> list[int]:
        """The words that get most, in falling order."""
        order = np.argsort(-self.shares, kind="stable")[:count]
        return [int(index) for index in order if self.shares[index] > 0]

    def around(self, index: int, words: int) -> tuple[str, str]:
        """What stands before a word and after it, so many words, on one line; long ones cut."""
        look = self.look

        def told(run: Sequence[int]) -> str:
            return "".join(" " * bool(look.gaps[i]) + shortened(look.words[i].text) for i in run)

        before = told(range(max(index - words, 0), index))
        after = told(range(index + 1, min(index + words + 1, len(look.words))))
        apart = not look.words[index].text.strip()  # a line break, which is shown as a sign
        gap = " " * (apart or bool(look.gaps[index]))
        then = " " * (apart or after[:1].isspace())
        return " ".join(before.split()) + gap, then + " ".join(after.split())


def observed(count: int) -> Observe:
    """What is best gathered while a model reads so many tokens."""
    side = min(count, BINS)
    return Observe(entropy=True, received="all", map=(side, side))


def shortened(text: str) -> str:
    """A word that is not too long to stand among others."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def set_aside(look: Look) -> np.ndarray:
    """(tokens,), True for the first token and special tokens."""
    aside = np.zeros(len(look.tokens), bool)
    for word in look.words:
        aside[word.start : word.stop] = word.special
    aside[0] = True
    return aside


def _edges(look: Look) -> np.ndarray:
    count = len(look.tokens)
    return bins(count, min(count, BINS))


def _view(look: Look, layer: Layer) -> LayerView:
    edges, aside = _edges(look), set_aside(look)
    seen = layer.seen(observed(len(aside)))
    layer.check(*map(float64, (seen.map, seen.received, seen.entropy)))
    lse = float64(layer.weights.lse())
    rows = layer.sighted

    def mean(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(rows, x, 0.0).sum(axis=-1) / rows.sum(axis=-1).clip(1))

    around = Band(0, NEAR, NEAR) & Padding(~aside)
    near, _ = mass(layer.weights.problem, around, lse)
    pooled = float64(seen.map).mean(axis=0)
    onto = layer.learned.copy()
    for token in np.flatnonzero(aside):
        weight = layer.tile(slice(0, len(aside)), slice(int(token), int(token) + 1))[..., 0]
        onto += weight
        column = int(np.searchsorted(edges[:, 1], token, side="right"))
        in_rows = summed(np.where(rows, 1.0, 0.0), edges).clip(1)
        pooled[:, column] -= (summed(weight, edges) / in_rows).mean(axis=0)
    received = np.where(aside, 0.0, float64(seen.received).mean(axis=0))
    shares = mean(onto), mean(near)
    far = (1.0 - shares[0] - shares[1]).clip(0.0)
    bits = mean(float64(seen.entropy)) / np.log(2.0)
    return LayerView(layer.number, layer.heads, pooled.clip(0.0), received, *shares, far, bits)
