"""The pages in docs/ run and print what they say, and show what they claim."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.once

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS))

from pages import PAGES, rewritten, run  # noqa: E402

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
APART = 0.15  # of a number, or in all: trained on another processor, a model is another


def same(said: str, printed: str) -> bool:
    """Whether two outputs are the same words, and nearly the same numbers."""
    numbers = [[float(x) for x in NUMBER.findall(text)] for text in (said, printed)]
    words = [NUMBER.sub("#", text).split() for text in (said, printed)]
    return words[0] == words[1] and all(
        abs(a - b) <= max(APART, APART * abs(a)) for a, b in zip(*numbers, strict=True)
    )
