"""Where sentences end."""

import pytest
import regex

from regard._watch import Word
from regard._watch.sentences import sentences

pytestmark = pytest.mark.once


def cut(text: str) -> list[str]:
    """The sentences of a text whose words are its blanks' and marks' parts."""
    words: list[Word] = []
    for match in regex.finditer(r"<\w+>|\n+|[\w']+|[^\w\s]", text):
        special = match[0].startswith("<")
        words.append(Word(match[0], len(words), len(words) + 1, special))
    found = sentences(words)
    assert [w for s in found for w in s.words] == words
    assert [(s.start, s.stop) for s in found] == [
        (s.words[0].start, s.words[-1].stop) for s in found
    ]
    return [s.text for s in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two. Three!", ["One two .", "Three !"]),
        ('"Stop!" he said. She left.', ['" Stop ! "', "he said .", "She left ."]),
        ("Really?! Yes... perhaps. No", ["Really ? !", "Yes . . . perhaps .", "No"]),
        ("By J. Smith, approx. three. Then.", ["By J . Smith , approx . three .", "Then ."]),
        ("猫がいる。犬も。", ["猫がいる 。", "犬も 。"]),
        ("هل؟ نعم", ["هل ؟", "نعم"]),
        ("<s>One\n\ntwo\nthree", ["<s>", "One", "two three"]),
        ("<pad><pad><s>One.", ["<pad> <pad>", "<s>", "One ."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert cut(text) == expected
