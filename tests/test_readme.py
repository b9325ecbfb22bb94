"""The README's code runs and prints what the README says."""

import doctest
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def sessions(text: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def failures(blocks: list[str]) -> int:
    """How many examples print something else; later blocks see the names of earlier ones."""
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for number, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {number}", "README.md", 0)
        assert test.examples, f"block {number} holds no example: begin its lines with >>>"
        runner.run(test, clear_globs=False)
        names.update(test.globs)
    return runner.summarize(verbose=False).failed


def test_sessions_print_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where a session may write
    blocks = sessions(README)
    assert blocks
    assert failures(blocks) == 0, capsys.readouterr().out


def test_the_check_can_fail() -> None:
    assert failures([">>> x = 1\n", ">>> x + 1\n2\n"]) == 0
    assert failures([">>> x = 1\n", ">>> x + 1\n3\n"]) == 1


def test_the_commands_come_first_and_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)
    assert named[:2] == ["look", "test"]
    assert set(named) <= targets


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
