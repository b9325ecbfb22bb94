"""Alignments by word: what is shown, where tokens are too fine."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from regard.translation.translator import Translation
from regard.translation.vocabulary import BYTE

SPACE = "\u2581"  # how SentencePiece writes it: at the beginning of a word
END = "</s>"


class ByWord(NamedTuple):
    """An alignment of words.

    Attributes:
        source, target: the words; the last of each may be END.
        weights: (target words, source words): of a source word the sum over its tokens, of a
            target word the mean. Every row sums to one.
    """

    source: list[str]
    target: list[str]
    weights: np.ndarray


def by_word(translation: Translation) -> ByWord:
    """The alignment of a translation with weights."""
    assert translation.weights is not None
    sides = [_words(tokens) for tokens in translation.tokens]
    sums = [np.zeros((len(words), len(of))) for words, of in sides]
    for matrix, (_, of) in zip(sums, sides, strict=True):
        matrix[of, np.arange(len(of))] = 1.0
    source, target = sums
    mean = target / np.maximum(target.sum(axis=1, keepdims=True), 1.0)
    return ByWord(sides[0][0], sides[1][0], mean @ translation.weights @ source.T)


def _words(tokens: Sequence[str]) -> tuple[list[str], list[int]]:
    """The words, and of each token the place of its word."""
    words: list[bytes] = []
    of: list[int] = []
    end = END.encode()
    for token in tokens:
        if not words or token.startswith(SPACE) or token == END or words[-1] == end:
            words.append(b"")
        byte = BYTE.fullmatch(token)  # of a token that says more, such text is itself
        words[-1] += bytes.fromhex(byte[1]) if byte else token.replace(SPACE, "").encode()
        of.append(len(words) - 1)
    return [word.decode(errors="ignore") for word in words], of
