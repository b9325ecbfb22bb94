"""Characters that a vocabulary can only spell in bytes, which few models have learnt to copy.

While a text is translated, a digit stands for each run of words that have some, since a translator
leaves digits as they are. Of a digit that the model did not write again, the run is put behind the
word that looked at it most; of one that it wrote again and again, only the first stays.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from regard.translation.vocabulary import BYTE, Vocabulary

DIGITS = "4321587906"  # first those that the first packaged model copied most reliably
WORDS = re.compile(r"[\w\u0300-\u036f]+|[^\w\s]")  # accents stay with their letters
AROUND = frozenset(".,;:!?…()[]{}«»\"'“”")  # what may stand around a word
QUOTE = "`"  # around code, which is not to be translated


def hidden(text: str, vocabulary: Vocabulary) -> tuple[str, dict[str, str]]:
    """The text with digits in place of what has unknown characters, and what each stands for.

    A digit that the text has stands for nothing; of more runs than there are others, the last stay
    as they are. Unknown kinds of space become spaces.
    """
    unknown = {character for character in set(text) if vocabulary.spells(character)}
    text = "".join(" " if c in unknown and c.isspace() else c for c in text)
    free = iter([d for d in DIGITS if d not in text and not vocabulary.spells(d)])
    kept, place, runs = [], 0, {}
    for start, end in _runs(text, unknown):
        if (digit := next(free, None)) is None:
            break
        kept += [text[place:start], digit]
        runs[digit], place = text[start:end], end
    return "".join([*kept, text[place:]]), runs


def _runs(text: str, unknown: set[str]) -> list[tuple[int, int]]:
    """From where to where there are words, or signs, with such characters beside each other."""
    found: list[tuple[int, int]] = []
    for start, end in _words(text, unknown):
        if found and not text[found[-1][1] : start].strip(" "):
            start = found.pop()[0]
        found.append((start, end))
    return found


def _words(text: str, unknown: set[str]) -> Iterator[tuple[int, int]]:
    """Words with unknown letters, and signs: a name like 日本語.txt stays in one piece."""
    for word in re.finditer(r"\S+", text):
        met = unknown.intersection(word[0])
        if any(c == QUOTE or unicodedata.category(c)[0] in "LMN" for c in met):
            around = "".join(AROUND - unknown)
            start = word.end() - len(word[0].lstrip(around))
            yield start, word.start() + len(word[0].rstrip(around))
        elif met:
            parts = (part.span() for part in WORDS.finditer(text, *word.span()))
            yield from (span for span in parts if not unknown.isdisjoint(text[slice(*span)]))


def again(target: Sequence[str], runs: Mapping[str, str]) -> list[int]:
    """Places of target pieces that are a digit which stands for a run and was written before."""
    written: set[str] = set()
    places = []
    for place, piece in enumerate(target):
        digits = {digit for digit in runs if digit in piece}
        if digits & written and piece.strip("▁") in digits:
            places.append(place)
        written |= digits
    return places


def missing(source: Sequence[str], target: Sequence[str], runs: Mapping[str, str]) -> list[int]:
    """Places of source pieces with a digit that stands for a run and is not in the translation."""
    written = "".join(target)
    return [
        place
        for place, piece in enumerate(source)
        if any(digit in piece and digit not in written for digit in runs)
    ]


def behind(target: Sequence[str], weights: np.ndarray | None, column: int) -> int:
    """The place behind the target word that looked most at a source token.

    Args:
        weights: (target pieces + 1, source pieces + 1), or None: behind everything.
    """
    if weights is None or not target:
        return len(target)
    place = int(weights[: len(target), column].argmax()) + 1
    while place < len(target) and (target[place][0].isalnum() or BYTE.fullmatch(target[place])):
        place += 1
    return place


def shown(pieces: Sequence[str], runs: Mapping[str, str]) -> list[str]:
    """Pieces with the runs in place of their digits."""
    return [p if BYTE.fullmatch(p) else restored(p, runs) for p in pieces]


def restored(text: str, runs: Mapping[str, str]) -> str:
    """A text with the runs in place of their digits."""
    table: dict[str, str | int | None] = {**runs}
    return text.translate(str.maketrans(table))
