"""Traces in files: tensors, and a description in JSON of what they are.

A safetensors file whose metadata holds a format, its version and the description. Nothing in it
is ever executed, and nothing is believed: what a description says is checked as the arguments of
`regard.attention` are, when the file is opened or, of a layer, when that is first asked for.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regard._errors import FileError, ModelError, RegardError
from regard._watch.files import replacing
from regard._watch.layer import Layer
from regard._watch.trace import Stored, Trace
from regard._watch.trace_layers import describe_layer, read_layer
from regard._watch.trace_tensors import Contents, Opened, member, several, string, whole
from regard._watch.trace_text import describe_tokens, read_tokens
from regard._watch.wanted import rounding

FORMAT = "regard trace"
VERSION = 2  # from 2 on weights have a score, and their lse may be null: computed when asked for

MASKS = ("attention_mask", "decoder_attention_mask")
UNREADABLE = (RegardError, OSError, ValueError, RecursionError)  # what reading may raise


def _with_scores(description: dict[str, Any]) -> dict[str, Any]:
    for layer in several(member(description, "layers"), "layers"):
        weights = member(layer, "weights")
        if isinstance(weights, dict):
            weights["score"] = None
    return description


# What makes version n + 1 of a description from version n, for every n below VERSION.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _with_scores}


def save(trace: Trace, path: Any, dtype: Any = None) -> None:
    """`Trace.save`."""
    trace.check_filled()
    to = rounding(dtype)
    rounded = {} if to is None else {"dtype": str(to).removeprefix("torch.")}
    contents = Contents()
    with _naming(path, FileError):
        description = {
            "model": trace.model,
            "options": trace.options | rounded,
            "start": int(trace.start),
            "whole": trace.whole,
            "input": describe_tokens(trace, contents, decoder=False),
            "decoder": describe_tokens(trace, contents, decoder=True),
            "passes": trace.passes,
            **{name: _put(getattr(trace, name), name, contents) for name in MASKS},
            "layers": [describe_layer(layer, contents, to) for layer in trace],
        }
        text = json.dumps(description, separators=(",", ":"), allow_nan=False)
        header = contents.header({"format": FORMAT, "version": str(VERSION), "trace": text})
    with replacing(path) as stream:
        stream.write(header)
        contents.write(stream)


def load(path: Any, tokenizer: Any = None) -> Trace:
    """`Trace.load`."""
    with _naming(path, *UNREADABLE):
        file = Path(path)
        if not file.is_file():
            raise FileError("is no file" if file.exists() else "there is no such file")
        opened = Opened(file)
        description = _description(opened.metadata)
        ids, text = read_tokens(member(description, "input"), opened)
        decoder_ids, decoder_text = read_tokens(member(description, "decoder"), opened)
        told = {False: text, True: decoder_text}
        options = _object(description, "options")
        if "observe" in options:
            _object(options, "observe")
        stored = Stored(options, told)
        model = {key: string(x, "model") for key, x in _object(description, "model").items()}
        trace = Trace(tokenizer, model, stored)
        trace.start = whole(member(description, "start"), "start")
        if (count := description.get("whole")) is not None:  # older files do not tell
            trace.whole = whole(count, "whole")
        trace.token_ids, trace.decoder_token_ids = ids, decoder_ids
        for name in MASKS:
            if (mask := member(description, name)) is not None:
                setattr(trace, name, opened.get(mask, name, "any"))
        for name, counts in _object(description, "passes").items():
            trace.passes[name] = [whole(n, "passes") for n in several(counts, "passes")]
        for layer in _layers(description, path, opened):
            trace.add(layer)
    return trace


def _put(x: Any, name: str, contents: Contents) -> str | None:
    return None if x is None else contents.put(name, x)


@contextmanager
def _naming(path: Any, *errors: type[Exception]) -> Iterator[None]:
    """Errors about a file name it."""
    try:
        yield
    except ModelError:  # of a library that is not there
        raise
    except errors as error:
        raise FileError(f"{path}: {error}") from error


def _description(metadata: dict[str, str]) -> dict[str, Any]:
    """What the file says of itself, as this version would say it."""
    if metadata.get("format") != FORMAT:
        raise FileError("is a safetensors file, but holds no trace that `Trace.save` wrote")
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdecimal() and int(version[:9]) >= 1):
        raise FileError(f"got the version {version!r:.20}; needs a number from 1 on")
    if int(version[:9]) > VERSION:
        raise FileError(
            f"is of version {version:.20} of the format, and this regard reads versions up to "
            f"{VERSION}; needs a newer regard"
        )

    def refuse(constant: str) -> None:
        raise FileError(f"description: holds {constant:.60}, which is no finite number")

    def number(text: str) -> float:
        if not math.isfinite(x := float(text)):
            refuse(text)
        return x

    text = metadata.get("trace", "")
    read = json.loads(text, parse_constant=refuse, parse_float=number)
    found = _object({"description": read}, "description")
    for n in range(int(version), VERSION):
        found = UPGRADES[n](found)
    return found


def _object(description: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = member(description, name)
    if not isinstance(found, dict):
        raise FileError(f"{name}: got {found!r:.60}; needs an object")
    return found


@dataclass(eq=False)
class StoredLayer:
    """A layer in an open file, read when it is asked for."""

    number: int
    name: str
    path: Any
    opened: Opened
    description: dict[str, Any]

    @cached_property
    def layer(self) -> Layer:
        """Raises FileError: what the file says of this layer cannot be."""
        with _naming(f"{self.path}: {self.name:.99}", *UNREADABLE):
            return read_layer(self.number, self.name, self.description, self.opened)


def _layers(description: dict[str, Any], path: Any, opened: Opened) -> Iterator[StoredLayer]:
    numbers, names = set(), set()
    for layer in several(member(description, "layers"), "layers"):
        number, name = (
            whole(member(layer, "number"), "number"),
            string(member(layer, "name"), "name"),
        )
        if number in numbers or name in names:
            raise FileError(f"layers: {number}, {name:.99} is there twice")
        numbers.add(number)
        names.add(name)
        yield StoredLayer(number, name, path, opened, layer)
    if not numbers:
        raise FileError("layers: got none; needs one or more")
