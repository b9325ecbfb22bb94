# ruff: noqa: RUF001 (scripts that look like Latin are what is tested)
"""Token pieces merged to words."""

from itertools import pairwise
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from regard import TextError
from regard._watch import Word, find, words
from regard._watch.words import repeats, spelled

pytestmark = pytest.mark.once

# Words of a text as both tokenizers must cut it, for byte-level BPE and WordPiece with the text.
TEXTS = {
    "The trophy would not fit.": ["The", "trophy", "would", "not", "fit", "."],
    "She's sure it isn't  3.14, but 1,000!": (
        ["She's", "sure", "it", "isn't", "3.14", ",", "but", "1,000", "!"]
    ),
    "the rock’n’roll unbelievably uncharacteristic": (
        ["the", "rock’n’roll", "unbelievably", "uncharacteristic"]
    ),
    "state-of-the-art (a, b)": [
        "state",
        "-",
        "of",
        "-",
        "the",
        "-",
        "art",
        "(",
        "a",
        ",",
        "b",
        ")",
    ],
    "snake_case x1": ["snake_case", "x1"],
    "naïve cafe\u0301 Ångström": ["naïve", "cafe\u0301", "Ångström"],
    "हिन्दी में": ["हिन्दी", "में"],
    "می\u200cخواهم": ["می\u200cخواهم"],
    "한국어 단어": ["한국어", "단어"],
}


@pytest.fixture(scope="module")
def bpe(smollm2: Any) -> Any:
    return smollm2[1]


@pytest.fixture(scope="module")
def wordpiece(minilm: Any) -> Any:
    return minilm[1]


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A tokenizer as Llama 2 and Gemma have it: blanks as ▁, unknown characters as bytes."""
    pieces = ["<unk>", "<s>", "▁", "▁the", "▁c", "at", "s", "▁don", "'", "t", ".", "▁sat", "\n"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = [(piece, -1.0 - 0.01 * k) for k, piece in enumerate(pieces)]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


def texts(found: list[Word]) -> list[str]:
    return [word.text for word in found if not word.special]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_bpe(text: str, bpe: Any) -> None:
    ids = bpe(text)["input_ids"]
    assert texts(words(ids, bpe)) == TEXTS[text]
    assert texts(words(ids, bpe, text)) == TEXTS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_wordpiece_with_the_text(text: str, wordpiece: Any) -> None:
    ids = wordpiece(text)["input_ids"]
    assert texts(words(ids, wordpiece, text)) == TEXTS[text]


def test_wordpiece_without_the_text_is_spelled_by_its_pieces(wordpiece: Any) -> None:
    ids = wordpiece("She isn't uncharacteristic.")["input_ids"]
    found = words(ids, wordpiece)
    assert texts(found) == ["she", "isn", "'", "t", "uncharacteristic", "."]
    assert [w.text for w in found if w.special] == ["[CLS]", "[SEP]"]
    assert found[5].stop - found[5].start > 1


def test_sentencepiece(sentencepiece: Any) -> None:
    text = "the cats don't sat.\n🙂 é"
    ids = sentencepiece(text)["input_ids"]
    expected = ["the", "cats", "don't", "sat", ".", "\n", "🙂", "é"]
    assert texts(words(ids, sentencepiece)) == expected
    assert texts(words(ids, sentencepiece, text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 👩\u200d🚀❤\ufe0f!", ["a", "👩\u200d🚀", "❤\ufe0f", "!"]),
        ("🇫🇷🇩🇪", ["🇫🇷", "🇩🇪"]),
        ("我喜欢猫", ["我", "喜", "欢", "猫"]),
        ("ひらがな", ["ひ", "ら", "が", "な"]),
        ("ไทย", ["ไ", "ท", "ย"]),
    ],
)
def test_characters_that_are_split_over_tokens_stay_whole(
    text: str, expected: list[str], bpe: Any
) -> None:
    ids = bpe(text)["input_ids"]
    assert len(ids) > len(expected)
    found = words(ids, bpe)
    assert "".join(texts(found)) == "".join(expected)
    # A word may hold several characters only where a token does.
    pieces = [bpe.decode([i]) for i in ids]
    if not any(len(piece.strip()) > 1 for piece in pieces):
        assert texts(found) == expected
    assert texts(words(ids, bpe, text)) == texts(found)


def test_words_that_share_a_token_are_one(bpe: Any) -> None:
    ids = bpe("(really)!")["input_ids"]
    assert [bpe.decode([i]) for i in ids] == ["(", "really", ")!"]
    assert texts(words(ids, bpe)) == ["(", "really", ")!"]


def test_blanks_belong_to_the_word_they_precede_and_lines_are_their_own(bpe: Any) -> None:
    ids = bpe("def f():\n    return  x\n\ny ")["input_ids"]
    found = texts(words(ids, bpe))
    assert found == ["def", "f", "():", "\n   ", "return", "x", "\n\n", "y", " "]


def test_special_tokens(bpe: Any, wordpiece: Any) -> None:
    chat = bpe.apply_chat_template([{"role": "user", "content": "Hi there"}], tokenize=False)
    found = words(bpe(chat)["input_ids"], bpe)
    special = [word.text for word in found if word.special]
    assert special == ["<|im_start|>", "<|im_end|>"] * 2
    assert [w.text for w in found if w.text in ("user", "Hi", "there")] == ["user", "Hi", "there"]
    padded = wordpiece(["cat", "a much longer text"], padding=True)["input_ids"][0]
    found = words(padded, wordpiece)
    assert [w.text for w in found] == ["[CLS]", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert [w.special for w in found] == [True, False, True, True, True, True]


def test_an_unknown_word_is_a_word(wordpiece: Any) -> None:
    text = "a 🙂 b"
    ids = wordpiece(text)["input_ids"]
    assert wordpiece.unk_token_id in ids
    assert texts(words(ids, wordpiece)) == ["a", "[UNK]", "b"]
    assert texts(words(ids, wordpiece, text)) == ["a", "🙂", "b"]


def test_bytes_that_are_no_text(bpe: Any) -> None:
    half = bpe("你")["input_ids"][:1]
    assert bpe.decode(half) == "\ufffd"
    assert [w.text for w in words([*half, *bpe(" cat")["input_ids"]], bpe)] == ["\ufffd", "cat"]


# Pieces that tokenizers split in ways of their own, joined at random: marks that combine, joiners,
# scripts without blanks or from right to left, and any characters at all.
PIECES = st.sampled_from(
    [
        *("the", "Don't", "3.14", "(a)", "e\u0301", "q\u0323\u0307", "ﬁ", "İ", "ß", "ſ"),
        *("我喜欢", "ひらがな", "ภาษาไทย", "한국어", "हिन्दी", "क्ष", "தமிழ்"),
        *("שלום", "عَرَبِيّ", "می\u200cخواهم", "\u202eabc\u202c", "\u200f"),
        *("🙂", "👩\u200d👩\u200d👧", "🇫🇷", "1\ufe0f\u20e3", "☝🏽"),
        *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\ufeff", "\x00", "…", "—"),
    ]
)
SCRIPTS = st.lists(PIECES | st.text(max_size=4), max_size=20).map("".join)


@given(text=SCRIPTS)
def test_words_cut_the_tokens_into_runs(
    text: str, bpe: Any, wordpiece: Any, sentencepiece: Any
) -> None:
    for tokenizer in (bpe, wordpiece, sentencepiece):
        ids = tokenizer(text)["input_ids"]
        if not ids:
            continue
        for known in (None, text):
            found = words(ids, tokenizer, known)
            assert (found[0].start, found[-1].stop) == (0, len(ids))
            assert all(a.stop == b.start for a, b in pairwise(found))
            assert all(word.start < word.stop for word in found)


@given(text=SCRIPTS)
def test_words_hold_the_whole_text(text: str, bpe: Any, sentencepiece: Any) -> None:
    for tokenizer in (bpe, sentencepiece):
        ids = tokenizer(text)["input_ids"]
        # SmolLM2's drops the bytes that no script in use needs; ▁ is a blank to the other.
        if not ids or tokenizer.decode(ids).strip() != text.strip():
            continue
        found = "".join(texts(words(ids, tokenizer)))
        assert "".join(found.split()) == "".join(text.split())
        assert spelled(ids, tokenizer).strip() == text.strip()


def test_errors(bpe: Any) -> None:
    with pytest.raises(TextError, match="text: is empty; needs at least one token"):
        words([], bpe)
    with pytest.raises(TextError, match="makes other tokens from it"):
        words(bpe("one text")["input_ids"], bpe, "another text")
    with pytest.raises(TextError, match="token_ids: 49999999 is not in the vocabulary"):
        words([49999999], bpe)


SENTENCE = [
    Word(text, k, k + 1, text == "[CLS]")
    for k, text in enumerate(["[CLS]", "It", "was", "it", ",", "the", "It", "#", "\n", "\n  ", " "])
]


@pytest.mark.parametrize(
    ("word", "index"),
    [
        ("was", 2),
        ("It", 1),
        ("It#1", 1),
        ("It#2", 6),
        ("it", 3),
        ("The", 5),
        ("WAS", 2),
        (",", 4),
        ("#", 7),
        ("[CLS]", 0),
        ("\n", 8),
        ("↵#2", 9),
        ("␣", 10),
    ],
)
def test_find(word: str, index: int) -> None:
    assert find(SENTENCE, word) == index


def test_repeats_are_the_numbers_that_find_takes() -> None:
    assert repeats(SENTENCE) == [1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1]
    for index, (word, number) in enumerate(zip(SENTENCE, repeats(SENTENCE), strict=True)):
        assert find(SENTENCE, f"{word.text}#{number}") == index


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "large",
            r'word: "large" is not in the text, whose words are: It was it , the It # ↵ ↵ ␣$',
        ),
        ("It#3", 'word: got "It#3", but "It" occurs 2 times'),
        ("was#2", 'word: got "was#2", but "was" occurs once'),
        ("It#0", 'word: "It#0" is not in the text'),
        ("It#x", 'word: "It#x" is not in the text'),
        ("", 'word: "" is not in the text'),
    ],
)
def test_find_tells_what_there_is(word: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        find(SENTENCE, word)


def test_find_lists_no_more_than_a_hundred_words() -> None:
    many = [Word(f"w{k}", k, k + 1) for k in range(500)]
    with pytest.raises(TextError, match=r"w0 w1 .* w99 \.\.\. \(500 in all\)$"):
        find(many, "none")
