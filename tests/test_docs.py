"""The pages in docs/ run and print what they say, and show what they claim."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS))

from pages import rewritten, run  # noqa: E402

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def same(said: str, printed: str) -> bool:
    """Whether two outputs are the same words, and nearly the same numbers."""
    numbers = [NUMBER.findall(text) for text in (said, printed)]
    words = [NUMBER.sub("#", text).split() for text in (said, printed)]
    return words[0] == words[1] and all(map(near, *numbers))


def near(said: str, printed: str) -> bool:
    """Trained on another processor, a model is another one; what is claimed is tested below."""
    a, b = float(said), float(printed)
    if "e" in said:
        return 0.5 <= b / a <= 2.0
    return abs(a - b) <= (max(0.15, 0.3 * abs(a)) if "." in said else 2)


def read(name: str) -> dict[str, Any]:
    """Runs a page, whose blocks print what it says; what they defined."""
    names: dict[str, Any] = {}
    for said, printed in run((DOCS / name).read_text(), names):
        assert same(said, printed), f"{name} says\n{said}\nbut its code prints\n{printed}"
    return names


def test_attention_holds_where_a_fixed_summary_falls() -> None:
    right = read("copying.md")["right"]
    for task in ("copy", "reverse"):
        fixed, attention = right[task]["fixed summary"], right[task]["attention"]
        assert fixed[2] > 0.9
        assert fixed[16] < fixed[8] < fixed[4]
        assert fixed[16] < 0.7
        assert attention[16] > 0.9


def test_two_layers_look_up_and_the_heads_are_found() -> None:
    names = read("recall.md")
    assert names["right"][1] < 0.3
    assert names["right"][2] > 0.95
    assert names["scores"].top("previous", 1)[0].layer == 0
    assert names["scores"].top("induction", 1)[0].layer == 1


def test_a_softmax_that_was_not_divided_saturates() -> None:
    names = read("saturation.md")
    plain, scaled = names["plain"], names["scaled"]
    assert plain[4096][2] < 1e-3 * plain[4][2]
    assert scaled[4096][2] > 0.5 * scaled[4][2]
    assert names["best"][256][0] > 1.0
    assert names["best"][256][1] < 0.1


def test_the_comparison_can_fail() -> None:
    assert same("right: 0.91 of 12", "right: 0.93 of 12")
    assert not same("right: 0.91 of 12", "right: 0.31 of 12")
    assert not same("right: 0.91 of 12", "right: 0.91 of 20")
    assert not same("norm: 3.1e-05", "norm: 1.2e-01")
    assert not same("right: 0.91 of 12", "wrong: 0.91 of 12")
    page = "```python\nprint(1)\n```\n\n```text\n2\n```\n"
    assert list(run(page, {})) == [("2\n", "1\n")]
    assert rewritten(page, ["1\n"]) == page.replace("2", "1")
