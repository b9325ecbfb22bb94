"""Tokens, words and options of a trace, as a file says them."""

from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

from regard._errors import FileError, ShapeError, TextError
from regard._observation import Observe
from regard._watch.trace import StoredText, Trace
from regard._watch.trace_tensors import Contents, Opened, flag, member, several, string, whole
from regard._watch.words import Word


def describe_tokens(trace: Trace, contents: Contents, *, decoder: bool) -> dict[str, Any] | None:
    ids = trace.decoder_token_ids if decoder else trace.token_ids
    if ids is None:
        return None
    name = "decoder_token_ids" if decoder else "token_ids"
    found = {"ids": contents.put(name, ids), "pieces": None, "words": None, "texts": None}
    pieces: dict[str, str] = {}
    words: list[Any] = []
    texts: list[str] = []
    try:
        for entry in range(len(ids)):
            tokens = trace.tokens(entry, decoder=decoder)
            pieces |= dict(zip(map(str, ids[entry].tolist()), tokens, strict=True))
            words.append([list(word) for word in trace.words(entry, decoder=decoder)])
            texts.append(trace.text(entry, decoder=decoder))
    except TextError:  # no tokenizer, or one that does not know these tokens
        return found
    return found | {"pieces": pieces, "words": words, "texts": texts}


def read_tokens(found: Any, opened: Opened) -> tuple[Tensor | None, StoredText | None]:
    """The ids, and their texts if there was a tokenizer.

    Raises:
        FileError, ShapeError: they cannot be.
    """
    if found is None:
        return None, None
    ids = opened.get(member(found, "ids"), "token_ids", "integers")
    if ids.ndim != 2:
        raise ShapeError(f"token_ids: got shape {tuple(ids.shape)}; needs (batch, L)")
    pieces, words = member(found, "pieces"), member(found, "words")
    if pieces is None:
        return ids, None
    if not isinstance(pieces, dict) or len(several(words, "words")) != len(ids):
        raise FileError(f"words: got {words!r:.60} for {len(ids)} entries")
    tokens = {key: string(piece, "token") for key, piece in pieces.items()}
    if missing := {str(i) for i in ids.flatten().tolist()} - tokens.keys():
        raise FileError(f"tokens: there is no text of number {min(missing)}")
    entries = [[_word(word) for word in several(e, "words")] for e in words]
    for entry in entries:
        cuts = [0, *(word.stop for word in entry)]
        if cuts != [*(word.start for word in entry), ids.shape[1]] or sorted(set(cuts)) != cuts:
            raise FileError(f"words: do not cut the {ids.shape[1]} tokens into runs")
    return ids, StoredText(tokens, entries, _texts(found.get("texts"), len(ids)))


def _texts(found: Any, count: int) -> list[str] | None:
    if found is None:  # a file from before they were written
        return None
    texts = [string(text, "text") for text in several(found, "texts")]
    if len(texts) != count:
        raise FileError(f"texts: got {len(texts)} for {count} entries")
    return texts


def _word(found: Any) -> Word:
    if len(several(found, "word")) != 4:
        raise FileError(f"word: got {found!r:.60}; needs text, start, stop and special")
    start, stop = whole(found[1], "word"), whole(found[2], "word")
    return Word(string(found[0], "word"), start, stop, flag(found[3], "word"))


def options_of(wanted: Any) -> dict[str, Any]:
    """What was asked of a watch, as JSON would hold it."""
    observe: Observe = wanted.observe
    asked: dict[str, Any] = {}
    for field in fields(observe):
        value = getattr(observe, field.name)
        if field.name == "spans" and value is not None:
            value = [None if side is None else side.tolist() for side in value]
        elif field.name == "map" and value is not None:
            value = [int(n) for n in value]
        elif isinstance(value, np.integer):
            value = int(value)
        if value is not None and value is not False:
            asked[field.name] = value
    return {
        "observe": asked,
        "keep": "weights" if wanted.keeps else "statistics",
        "dtype": None if wanted.dtype is None else str(wanted.dtype).removeprefix("torch."),
        "layers": None if wanted.layers is None else sorted(wanted.layers, key=str),
        "heads": None if wanted.heads is None else list(wanted.heads),
    }
