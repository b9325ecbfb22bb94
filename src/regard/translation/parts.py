"""A text as a model reads it: in tokens, sentence by sentence, or as long as the model takes."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from regard._errors import TextError
from regard.translation import unknown
from regard.translation.vocabulary import Vocabulary

# After which a point ends no sentence, as after a single letter, in English and French.
ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "fig", "approx", "vol", "mme", "mlle"]
)
# A sentence's end: the word before its mark, the mark, and the first letter of what may be another
# sentence. Chinese and Japanese marks (\uff01 and \uff1f are their ! and ?) need no space behind
# them. A few quotes and brackets may stand between; without a bound a long row of dots would take
# its square.
SENTENCE_END = re.compile(
    r"(?<!\w)(\w*)(?:([.!?…])[^\w\s]{0,9}\s+|[。\uff01\uff1f][^\w\s]{0,9}\s*)(?=[^\w\s]{0,9}(\w))"
)
CLAUSE = re.compile(r"(?<=[.!?,:;…])\s+")  # where a sentence that is too long may be parted


class Part(NamedTuple):
    """Of a text.

    Attributes:
        tokens: without the end.
        runs: what digits in it stand for, as `unknown.hidden` gives it.
    """

    tokens: list[int]
    runs: dict[str, str]


def parted(
    text: Any, vocabulary: Vocabulary, most: int, name: int | str, *, whole: bool = False
) -> list[Part]:
    """The sentences of a text, or as few parts as a model's length allows; none without words.

    Args:
        most: tokens of a part.
        name: of the text, for errors.
        whole: leave sentences together.

    Raises:
        TextError: a word has more tokens, or the text is none.
    """
    if not isinstance(text, str):
        raise TextError(f"text {name}: got {type(text).__name__}; needs a str")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TextError(f"text {name}: has half a surrogate pair; needs whole characters")
    parts = [text] if whole else sentences(text)
    return [fitting for part in parts for fitting in _fitting(part, vocabulary, most, name)]


def sentences(text: str) -> list[str]:
    """A text between its sentences. An abbreviation's or initial's point ("e.g. Writer") ends none,
    nor does a mark before a small letter or a number, so that some may stay together."""
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        word, mark, next_ = end.groups()
        short = mark == "." and (len(word) == 1 or word.lower() in ABBREVIATIONS)
        if not short and not next_.islower() and not next_.isdigit():
            found.append(text[start : end.end()])
            start = end.end()
    return [*found, text[start:]]


def _fitting(text: str, vocabulary: Vocabulary, most: int, name: int | str) -> list[Part]:
    hidden, runs = unknown.hidden(text, vocabulary)
    whole = vocabulary.encode(hidden)
    if len(whole) <= most:
        return [Part(whole, runs)] if whole else []
    parts: list[list[int]] = []
    for tokens in _units(hidden, vocabulary, most):
        if len(tokens) > most:
            raise TextError(
                f"text {name}: has a word of {len(tokens)} tokens; the model takes {most}"
            )
        if parts and len(parts[-1]) + len(tokens) <= most:
            parts[-1] += tokens
        else:
            parts.append(tokens)
    return [Part(tokens, runs) for tokens in parts]


def _units(text: str, vocabulary: Vocabulary, most: int) -> Iterator[list[int]]:
    """The clauses of a text, and the words of those that are too long."""
    for clause in CLAUSE.split(text.strip()):
        tokens = vocabulary.encode(clause)
        yield from [tokens] if len(tokens) <= most else map(vocabulary.encode, clause.split())
