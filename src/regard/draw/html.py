"""What pages have in common: numbers inside, nothing fetched, written in one step."""

import base64
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined

from regard._errors import FileError, OptionError
from regard._watch.files import replacing
from regard.draw.look import Look

STEPS = 2000  # codes for a factor of e: weights within 0.025%, from 1 down to e^-32
HIDDEN = 65535  # the code of a weight of zero

Spec = dict[str, Any]


def filled(
    template: str, styles: Iterable[str], scripts: Iterable[str], data: Spec, **names: Any
) -> str:
    """A page from its parts, all of this folder.

    Args:
        data: what the scripts read, as JSON holds it.
        names: what the template reads.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_part),
    )
    # In a script element only "</script" and "<!--" end what JSON does not: no "<" remains.
    numbers = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template(template).render(
        data=numbers,
        style="".join(map(_part, styles)),
        script="".join(map(_part, scripts)),
        **names,
    )


def described(look: Look) -> list[Spec]:
    """The words of a look, with what stands before each, and which of its name each is."""
    return [
        {"gap": gap, "repeat": repeat, **word._asdict()}
        for gap, repeat, word in zip(look.gaps, look.repeats, look.words, strict=True)
    ]


def codes(weights: np.ndarray) -> str:
    """Weights as their logarithms, in 16 bits."""
    with np.errstate(divide="ignore"):
        steps = np.rint(-np.log(weights) * STEPS)
    # The faintest weight is not taken for a hidden one.
    return base64_of(np.where(weights > 0, steps.clip(0, HIDDEN - 1), HIDDEN), "<u2")


def base64_of(x: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(x.astype(kind)).tobytes()).decode("ascii")


def put(path: Path, text: str) -> None:
    """Writes a page, which replaces one of that name when all of it is written.

    Raises:
        OptionError: the path cannot be written.
    """
    try:
        with replacing(path) as stream:
            stream.write(text.encode())
    except FileError as error:
        raise OptionError(f"html: {error}") from error


def _part(name: str) -> str:
    return files("regard.draw").joinpath(name).read_text(encoding="utf-8")
