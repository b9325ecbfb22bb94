"""Alignments by word: what is shown, where tokens are too fine."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from regard.translation.translator import Translation

SPACE = "\u2581"  # how SentencePiece writes it: at the beginning of a word
BYTE = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
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
    words: list[str] = []
    of: list[int] = []
    for token in tokens:
        if not words or token.startswith(SPACE) or END in (token, words[-1]):
            words.append("")
        words[-1] += token.replace(SPACE, "")
        of.append(len(words) - 1)
    return [BYTE.sub(_characters, word) for word in words], of


def _characters(run: re.Match[str]) -> str:
    codes = re.findall(r"[0-9A-F]{2}", run[0])
    return bytes(int(code, 16) for code in codes).decode("utf-8", "replace")
