"""The picture at the head of the README: what `regard look` prints, as an SVG.

    .venv/bin/python docs/picture.py

Runs the command with the colours of a terminal and draws what comes out. Nothing in the SVG is
fetched: the browser's own monospaced font is used, each run of text stretched to its cells.
"""

import os
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

TEXT = "The trophy would not fit in the suitcase because it was too large."
COLUMNS = 94
RUN = "from regard.cli import main; main()"
PICTURE = Path(__file__).with_name("look.svg")

INK, PAPER = (235, 230, 220), (23, 22, 20)
THEME = TerminalTheme(PAPER, INK, [PAPER, *[INK] * 7], [INK] * 8)
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>What "it" looks at in SmolLM2, printed by regard look</title>
<style>
.{unique_id}-matrix {{
  font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  line-height: {line_height}px;
}}
{styles}
</style>
<defs>
{lines}
</defs>
<rect width="{width}" height="{height}" rx="10" fill="#171614"/>
<g transform="translate(18, 22)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def printed() -> str:
    """What the command prints on a terminal of many colours."""
    colours = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN, "look", TEXT, "--word", "it"],
            cwd=folder,
            env={**os.environ, **colours, "COLUMNS": str(COLUMNS)},
            capture_output=True,
            check=True,
            text=True,
        )
    return done.stdout


def main() -> None:
    command = Text.assemble(("$ ", "dim"), f'regard look "{TEXT}" --word it', style="not bold")
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(command, soft_wrap=False)
    console.print(Text.from_ansi(printed().rstrip()))
    PICTURE.write_text(
        console.export_svg(theme=THEME, code_format=SVG, unique_id="look", title=""),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
