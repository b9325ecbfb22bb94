"""Which source token each target token looked at: the cross-attention, as `regard.watch` sees it.

The row of a target token is that of the step that wrote it, where the decoder had read the tokens
before it. A Transformer has one such row per layer and head; `best_layer` says whose mean over
heads is the best alignment, by the words that a translation leaves as they are.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from regard._arrays import float64
from regard._watch import watch
from regard.translation.batches import Tokens, collate
from regard.translation.model import TranslationModel
from regard.translation.vocabulary import END, Vocabulary

CHECKED = 200  # sentence pairs, for the choice of a layer


def cross_attentions(model: TranslationModel) -> list[str]:
    """The names of the modules in which the decoder asks the encoder, the lowest first."""
    return [n for n, _ in model.network.named_modules() if n.endswith("cross_attention")]


@torch.inference_mode()
def align(model: TranslationModel, pairs: Sequence[Tokens], layer: int) -> list[np.ndarray]:
    """The weights of one cross-attention while given translations are written.

    Every token is read and written as in a search for them, in one pass for all.

    Args:
        pairs: source and translation in tokens, without ends.
        layer: which of `cross_attentions`.

    Returns:
        For each pair (T + 1, S + 1) float32, the mean over heads; the last row is of the
        translation's end, and the last column of the source's.
    """
    name = cross_attentions(model)[layer]
    batch = collate(pairs)
    source, target = (x.to(model.table.weight.device) for x in (batch.source, batch.target))
    with watch(model.network, layers=[name]) as trace:
        model(source, target[:, :-1])
    (seen,) = trace
    means = [float64(seen.weights[i, :, :, :]).mean(0) for i in range(len(pairs))]
    return [
        mean[: len(target) + 1, : len(source) + 1].astype(np.float32)
        for mean, (source, target) in zip(means, pairs, strict=True)
    ]


def kept_words(pair: Tokens, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Places (target, source) of tokens that must be each other's: the same on both sides, and
    there only once. They have a capital, a digit, or more than three letters."""
    source, target = (Counter(side) for side in pair)
    once = [t for t, n in source.items() if n == 1 and target.get(t) == 1]
    pieces = vocabulary.pieces(once)
    telling = [
        t
        for t, piece in zip(once, pieces, strict=True)
        if any(c.isdigit() or c.isupper() for c in piece) or sum(map(str.isalpha, piece)) > 3
    ]
    return [(pair[1].index(t), pair[0].index(t)) for t in telling]


def kept_rate(
    model: TranslationModel, pairs: Sequence[Tokens], vocabulary: Vocabulary, layer: int
) -> float:
    """Of the tokens that a translation leaves as they are, the share whose greatest weight is on
    themselves; 0 where there are none."""
    hits = [
        int(weights[row].argmax()) == column
        for pair, weights in zip(pairs, align(model, pairs, layer), strict=True)
        for row, column in kept_words(pair, vocabulary)
    ]
    return float(np.mean(hits)) if hits else 0.0


def best_layer(
    model: TranslationModel, pairs: Sequence[Tokens], vocabulary: Vocabulary
) -> tuple[int, list[float]]:
    """The cross-attention of the greatest `kept_rate` on some pairs, and the rate of each.

    Where a model has none, 0 and no rates.
    """
    some = pairs[:CHECKED]
    layers = range(len(cross_attentions(model)))
    rates = [kept_rate(model, some, vocabulary, layer) for layer in layers]
    return max(layers, key=rates.__getitem__, default=0), rates


def labels(pair: Tokens, vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    """The tokens that the columns and the rows of `align` are of."""
    source, target = (vocabulary.pieces([*side, END]) for side in pair)
    return source, target
