"""What a vocabulary does not know: digits stand for it while a text is translated."""

import numpy as np
import pytest

from regard import TextError
from regard.translation.parts import parted
from regard.translation.translator import Translation
from regard.translation.unknown import DIGITS, again, behind, hidden, missing, shown
from regard.translation.vocabulary import Vocabulary, learn
from regard.translation.words import by_word

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return learn([f"The cat sat on mat {n}, e.g. <0x4{n}>." for n in range(10)] * 5, 284)


@pytest.mark.parametrize(
    ("text", "read", "runs"),
    [
        ("The 漢字 cat.", "The 4 cat.", {"4": "漢字"}),
        ("漢字 文件, 🎼🎼!", "4, 3", {"4": "漢字 文件", "3": "🎼🎼!"}),
        ("the_cat 漢at 4 3", "2 4 3", {"2": "the_cat 漢at"}),
        ("<漢字.cat>. sat", "4. sat", {"4": "<漢字.cat>"}),
        ("the🎼 cat", "the4 cat", {"4": "🎼"}),
        ("The\u00a0cat\tsat", "The cat sat", {}),
        ("cats", "cats", {}),
    ],
)
def test_digits_that_the_text_lacks_stand_for_words_with_unknown_characters(
    text: str, read: str, runs: dict[str, str], vocabulary: Vocabulary
) -> None:
    found, stands = hidden(text, vocabulary)
    assert not any(vocabulary.spells(character) for character in found)
    if runs:
        assert (found, stands) == (read, runs)
    assert "".join(stands.get(c, c) for c in found).split() == text.split()


def test_more_runs_than_digits_stay_as_they_are(vocabulary: Vocabulary) -> None:
    found, runs = hidden(", ".join(["🎼"] * 12), vocabulary)
    assert found == ", ".join([*DIGITS, "🎼", "🎼"])
    assert list(runs) == list(DIGITS)
    assert hidden(f"{DIGITS} 🎼", vocabulary) == (f"{DIGITS} 🎼", {})


def test_a_digit_that_was_written_again_is_found() -> None:
    runs = {"4": "🎼", "3": "漢"}
    assert again(["▁4", "a", "4", "▁3", "▁4", "24"], runs) == [2, 4]
    assert again(["▁un"], runs) == again([], runs) == []


def test_what_was_not_written_goes_behind_the_word_that_looked_at_it_most() -> None:
    source, target = ["▁a", "▁4", "▁b"], ["▁un", "▁de", "ux", "."]
    assert missing(source, target, {"4": "🎼"}) == [1]
    assert missing(source, ["▁4)"], {"4": "🎼"}) == []
    weights = np.full((5, 4), 0.1)
    weights[1, 1] = 0.9
    assert behind(target, weights, 1) == 3  # between "deux" and its full stop
    assert behind(target, None, 1) == 4
    assert behind([], None, 1) == 0


def test_pieces_show_what_their_digit_stands_for() -> None:
    assert shown(["▁4", "<0x44>", "4)"], {"4": "🎼"}) == ["▁🎼", "<0x44>", "🎼)"]


def test_a_text_that_looks_like_a_byte_is_shown_as_it_is() -> None:
    tokens = ["▁<0", "x41>", "<0xC3>", "<0xA9>", "<0xC3>", "</s>"]
    weights = np.full((6, 6), 1 / 6, np.float32)
    found = by_word(Translation("", "", (tokens, tokens), weights, 0.0, True))
    assert found.source == found.target == ["<0x41>é", "</s>"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"text 1: got NoneType; needs a str"),
        (b"x", r"text 1: got bytes; needs a str"),
        ("\udcff", r"text 1: has half a surrogate pair"),
    ],
)
def test_what_is_no_text(text: object, message: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(TextError, match=message):
        parted(text, vocabulary, 10, 1)


def test_a_text_without_words_has_no_parts(vocabulary: Vocabulary) -> None:
    assert parted(" ", vocabulary, 10, 1) == parted("\u2581", vocabulary, 10, 1) == []
