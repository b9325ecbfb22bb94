"""A text as a model reads it: in tokens, parted where it is too long for the model."""

import re
from typing import Any, NamedTuple

from regard._errors import TextError
from regard.translation import unknown
from regard.translation.vocabulary import Vocabulary

SENTENCE = re.compile(r"(?<=[.!?:;…])\s+")  # where a text that is too long may be parted


class Part(NamedTuple):
    """Of a text.

    Attributes:
        tokens: without the end.
        runs: what digits in it stand for, as `unknown.hidden` gives it.
    """

    tokens: list[int]
    runs: dict[str, str]


def parted(text: Any, vocabulary: Vocabulary, most: int, name: int | str) -> list[Part]:
    """As few parts as a model's length allows; none of a text without words.

    Args:
        most: tokens of a part.
        name: of the text, for errors.

    Raises:
        TextError: a sentence has more tokens, or the text is none.
    """
    if not isinstance(text, str):
        raise TextError(f"text {name}: got {type(text).__name__}; needs a str")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TextError(f"text {name}: has half a surrogate pair; needs whole characters")
    hidden, runs = unknown.hidden(text, vocabulary)
    whole = vocabulary.encode(hidden)
    if len(whole) <= most:
        return [Part(whole, runs)] if whole else []
    parts: list[list[int]] = []
    for sentence in map(vocabulary.encode, SENTENCE.split(hidden.strip())):
        if len(sentence) > most:
            raise TextError(
                f"text {name}: has a sentence of {len(sentence)} tokens; the model takes {most}"
            )
        if parts and len(parts[-1]) + len(sentence) <= most:
            parts[-1] += sentence
        else:
            parts.append(sentence)
    return [Part(tokens, runs) for tokens in parts]
