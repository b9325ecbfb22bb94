"""The pages beside this file, run: their Python blocks in order, and what these print.

    python docs/pages.py            # every page: runs it, writes what it printed and its picture
    python docs/pages.py recall.md  # one

A block of Python is followed by what it prints, if it prints. `tests/test_docs.py` runs the pages
and compares.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PAGES = ("copying.md", "recall.md", "saturation.md")
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def run(page: str, names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What each block of a page's text is said to print, and what it prints.

    Args:
        page: the text.
        names: what the blocks define goes here.
    """
    for block in BLOCK.finditer(page):
        code, said = block.groups(default="")
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "page", "exec"), names)
        yield said, printed.getvalue()


def rewritten(page: str, printed: list[str]) -> str:
    """The text with what its blocks printed."""
    outputs = iter(printed)

    def block(found: re.Match[str]) -> str:
        output = next(outputs)
        return f"```python\n{found[1]}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(block, page)


def main() -> None:
    import pictures

    for name in sys.argv[1:] or PAGES:
        names: dict[str, Any] = {}
        path = FOLDER / name
        text = path.read_text()
        path.write_text(rewritten(text, [printed for _, printed in run(text, names)]))
        draw: Callable[[dict[str, Any]], bytes] = getattr(pictures, path.stem)
        path.with_suffix(".svg").write_bytes(draw(names))
        print(path.name)


if __name__ == "__main__":
    main()
