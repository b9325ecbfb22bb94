"""Words gathered to sentences.

The rule, after sentence boundaries of Unicode (UAX #29), on words instead of characters. A
sentence ends after a word that closes with a terminal mark of any script (Unicode's property
Sentence_Terminal: . ! ? 。 ؟ । ..., and the ellipsis), together with further such marks, quotes
and brackets behind it; before and after a special token; and after a blank line. A full stop or
an ellipsis is no end before a word in lower case ("approx. three"), nor after a single capital
("J. Smith", "U.S."). Abbreviations before a capital ("Dr. Smith") do end a sentence: no list of
them is kept.
"""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

from regard._watch.words import Word


class Sentence(NamedTuple):
    """A run of words and its tokens, number start to stop (not included)."""

    words: tuple[Word, ...]
    start: int
    stop: int

    @property
    def text(self) -> str:
        """Its words with blanks between them."""
        return " ".join(word.text for word in self.words if word.text.strip())

    @property
    def special(self) -> bool:
        """Whether it is a special token, or a run of padding."""
        return self.words[0].special


def sentences(words: Sequence[Word]) -> list[Sentence]:
    """The sentences of words; together they hold every word once."""
    numbers = []
    number = 0
    for i, word in enumerate(words):
        if i and _parts(words, i):
            number += 1
        numbers.append((number, word))
    runs = (tuple(word for _, word in run) for _, run in groupby(numbers, key=lambda x: x[0]))
    return [Sentence(run, run[0].start, run[-1].stop) for run in runs]


def _parts(words: Sequence[Word], i: int) -> bool:
    """Whether a new sentence begins at word i."""
    before, word = words[i - 1], words[i]
    if before.special or word.special:
        # A run of padding is one.
        return not (before.special and word.special and before.text == word.text)
    if before.text.count("\n") > 1:
        return True
    if _matches("closing", word.text) or not word.text.strip():
        return False  # marks and blanks go with what they close
    k = i - 1
    while k > 0 and not words[k].special and not words[k].text.strip():
        k -= 1
    while k > 0 and _matches("closing", words[k].text) and not _matches("end", words[k].text):
        k -= 1
    if not _matches("end", words[k].text):
        return False
    if not _matches("doubtful", words[k].text):
        return True
    initial = k > 0 and _matches("initial", words[k - 1].text)
    return not (_matches("lower", word.text) or initial)


# Marks that may also stand within a sentence; quotes, brackets and further marks behind them.
_STOPS = r".\u2024\ufe52\uff0e\u2026"
_CLOSING = r"[\p{Sentence_Terminal}\u2026\p{Pe}\p{Pf}\"']"
_PATTERNS = {
    "closing": rf"^{_CLOSING}+$",
    "end": rf"[\p{{Sentence_Terminal}}\u2026]{_CLOSING}*$",
    "doubtful": rf"(?:^|[^\p{{Sentence_Terminal}}\u2026])[{_STOPS}]+[\p{{Pe}}\p{{Pf}}\"']*$",
    "lower": r"^\p{Ll}",
    "initial": r"^\p{Lu}$",
}


@cache
def _compiled(name: str) -> Any:
    import regex  # type: ignore[import-untyped]

    return regex.compile(_PATTERNS[name])


def _matches(name: str, text: str) -> bool:
    return bool(_compiled(name).search(text))
