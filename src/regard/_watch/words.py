"""Token pieces merged to words.

The pieces of a tokenizer are laid over a text: the original one where it is known, else one built
from the pieces themselves. The text is cut into words, and a word takes every token that touches
it; words that share a token become one, so that words always cut the tokens into runs.
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from regard._errors import TextError

Span = tuple[int, int]
MOST_LISTED = 100  # words in an error message


class Word(NamedTuple):
    """A word and its tokens, number start to stop (not included).

    A special token ([CLS], <|im_start|>, padding) is a word of its own with `special` set.
    """

    text: str
    start: int
    stop: int
    special: bool = False


# Scripts written without spaces are cut at every character, as far as the tokens allow it.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# Joiners (U+200C, U+200D) stand inside words of Persian and the Indic scripts.
_LETTERS = rf"(?:(?!{_UNSPACED})[\p{{L}}\p{{N}}_][\p{{M}}\u200c\u200d]*)+"
_APOSTROPHE = r"['\u2019](?=\p{L})"
_POINT = r"(?<=\p{N})(?:\.|,(?=\p{N}{3}))"
# A new line is one of its own, with its indentation but for the last blank.
_LINE = r"\s*\n\s*?(?=[^\S\n]?(?:\S|\Z))"
# "don't", "3.14" and "1,000" are one word each. Any other mark is one of its own, as a whole
# grapheme (\X), so that an emoji of several code points stays together. Blanks belong to the word
# that they precede.
_WORD = rf"[^\S\n]*(?:{_LETTERS}(?:(?:{_APOSTROPHE}|{_POINT}){_LETTERS})*|\X)"
_SEGMENT = rf"{_LINE}|{_WORD}"


def words(token_ids: Sequence[int], tokenizer: Any, text: str | None = None) -> list[Word]:
    """The words that tokens spell, in order; together they hold every token once.

    Args:
        token_ids: of one sequence, special tokens and padding included.
        tokenizer: of transformers.
        text: what the tokens were made from. With it words appear as they were written; without
            it as the tokens spell them (in lower case for an uncased model). Only fast tokenizers
            know where their tokens came from.

    Raises:
        TextError: there is no token; or the tokenizer makes other tokens from the text.
    """
    ids = [int(i) for i in token_ids]
    if not ids:
        raise TextError("text: is empty; needs at least one token")
    special = _special_ids(tokenizer)
    if text is None:
        return _merge(ids, special, tokenizer, *_spell(ids, special, tokenizer))
    return _merge(ids, special, tokenizer, text, _offsets(ids, special, tokenizer, text))


def spelled(token_ids: Sequence[int], tokenizer: Any) -> str:
    """The text that tokens spell, without a blank before it; a line break stands for each special
    token.

    Raises:
        TextError: a token is not in the vocabulary.
    """
    text, _ = _spell([int(i) for i in token_ids], _special_ids(tokenizer), tokenizer)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removeprefix(" ")


def find(words: Sequence[Word], word: str) -> int:
    """The index of a word: the first such word, or with "it#2" the second.

    Capitals count only if that decides between words ("The" and "the"). A line break, whatever
    blanks are with it, is also "↵", other blanks "␣".

    Raises:
        TextError: it is not among the words, which the message lists.
    """
    for same in (str, str.casefold):
        for name, number in _readings(word):
            found = [i for i, w in enumerate(words) if same(sign(w.text)) == same(sign(name))]
            if len(found) >= number:
                return found[number - 1]
            if found:
                raise TextError(f'word: got "{word}", but "{name}" occurs {_times(len(found))}')
    shown = [sign(w.text) for w in words if not w.special]
    more = f" ... ({len(shown)} in all)" if len(shown) > MOST_LISTED else ""
    listed = " ".join(shown[:MOST_LISTED])
    raise TextError(f'word: "{word}" is not in the text, whose words are: {listed}{more}')


def repeats(words: Sequence[Word]) -> list[int]:
    """Which of the words that are named alike each is, from 1: the number that `find` takes."""
    met: Counter[str] = Counter()
    numbers = []
    for word in words:
        name = sign(word.text)
        met[name] += 1
        numbers.append(met[name])
    return numbers


def sign(text: str) -> str:
    """A word as it is shown and named: a sign for one that is blank."""
    return text if text.strip() else "↵" if "\n" in text else "␣"


def _readings(word: str) -> list[tuple[str, int]]:
    name, mark, number = word.rpartition("#")
    if mark and name and number.isdecimal() and int(number) > 0:
        return [(word, 1), (name, int(number))]
    return [(word, 1)] if word else []


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _special_ids(tokenizer: Any) -> set[int]:
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    found = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    # An unknown word is a word all the same; byte-level tokenizers know none, and give the name
    # to the end of a text.
    return found if "ByteLevel" in _decoders(tokenizer) else found - {tokenizer.unk_token_id}


def _merge(
    ids: list[int], special: set[int], tokenizer: Any, text: str, spans: list[Span]
) -> list[Word]:
    """Words from a text and the characters that each token covers."""
    segments = [match.span() for match in _pattern().finditer(text)]
    segment_of = [k for k, (a, b) in enumerate(segments) for _ in range(a, b)]
    result: list[Word] = []
    first = 0
    # first and last are the segments of the open word; last is -1 while it has none yet.
    last: int | None = None
    for i, (token, (a, b)) in enumerate(zip(ids, spans, strict=True)):
        if token in special:
            result.append(Word(_token(token, tokenizer), i, i + 1, special=True))
            last = None
            continue
        # A token that covers nothing (a dropped character) goes with the open word, or opens one.
        nothing = a >= b
        if last is None or (not nothing and 0 <= last < segment_of[a]):
            result.append(Word("", i, i + 1))
            last = -1
        shown = result[-1].text
        if not nothing:
            first = segment_of[a] if last < 0 else first
            last = max(last, segment_of[b - 1])
            shown = _tidy(text[segments[first][0] : segments[last][1]])
        result[-1] = result[-1]._replace(text=shown, stop=i + 1)
    return result


@cache
def _pattern() -> Any:
    # It comes with transformers; the standard library's re knows no scripts.
    import regex  # type: ignore[import-untyped]

    return regex.compile(_SEGMENT)


def _tidy(text: str) -> str:
    """The text without blanks around it, unless that is all there is."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return shown.strip() or shown


def _offsets(ids: list[int], special: set[int], tokenizer: Any, text: str) -> list[Span]:
    """The characters of the text that each token came from."""
    if not tokenizer.is_fast:
        raise TextError("text: this tokenizer keeps no offsets; leave it out to spell from tokens")
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    made = [
        (i, span)
        for i, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if i not in special
    ]
    if [i for i, _ in made] != [i for i in ids if i not in special]:
        raise TextError("text: the tokenizer makes other tokens from it than those that were given")
    spans = iter(made)
    return [(0, 0) if i in special else tuple(next(spans)[1]) for i in ids]


def _spell(ids: list[int], special: set[int], tokenizer: Any) -> tuple[str, list[Span]]:
    """A text built from the tokens, and the characters that each of them covers.

    The pieces are joined as bytes, since one character may be split over several tokens.
    """
    to_bytes = _speller(tokenizer)
    added: dict[int, Any] = tokenizer.added_tokens_decoder  # these are text already

    def spelled(i: int) -> bytes:
        if i in special:
            return b"\n"  # no word goes on past a special token
        piece: bytes = added[i].content.encode() if i in added else to_bytes(_token(i, tokenizer))
        return piece

    pieces = [spelled(i) for i in ids]
    # Bytes that are no UTF-8 become one lone surrogate each, and are shown as U+FFFD in the end.
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    character_of = [k for k, c in enumerate(text) for _ in c.encode("utf-8", "surrogateescape")]
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    spans = [
        (character_of[a], character_of[b - 1] + 1) if a < b else (0, 0) for a, b in pairwise(ends)
    ]
    return text, spans


def _token(i: int, tokenizer: Any) -> str:
    token: str | None = tokenizer.convert_ids_to_tokens(i)
    if token is None:
        raise TextError(f"token_ids: {i} is not in the vocabulary of the tokenizer")
    return token


def _speller(tokenizer: Any) -> Any:
    """The function from a token of this tokenizer to its bytes, the blank before it included."""
    kinds = _decoders(tokenizer)
    if "ByteLevel" in kinds:
        table = _byte_alphabet()
        return lambda token: b"".join(table[c] for c in token)
    if "WordPiece" in kinds:
        prefix = str(kinds["WordPiece"]["prefix"])
        return lambda token: (
            token.removeprefix(prefix).encode()
            if token.startswith(prefix)
            else b" " + token.encode()
        )
    if "Metaspace" in kinds or "ByteFallback" in kinds or not kinds:
        return _sentencepiece_bytes
    return lambda token: tokenizer.convert_tokens_to_string([token]).encode()


def _decoders(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """The decoders of a fast tokenizer by name; none for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return {}
    decoder = json.loads(backend.decoder.__getstate__())
    return {part["type"]: part for part in [decoder, *decoder.get("decoders", [])]}


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


@cache
def _byte_alphabet() -> dict[str, bytes]:
    """The character that byte-level BPE writes for each byte (GPT-2, Radford et al. 2019).

    Printable Latin-1 characters stand for themselves, the other bytes in order from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(256 + k): bytes([byte]) for k, byte in enumerate(others)}
