"""The chart: a row per case, a small multiple per peer, each a bar from SDPA's time.

Written as SVG by hand: its colours follow the reader's light or dark theme, which a picture drawn
by a library cannot, and it changes with the numbers alone.
"""

import math
from collections.abc import Iterator
from html import escape

from benchmarks.peers import REGARD, SDPA
from benchmarks.results import Results, Row
from benchmarks.tables import WORKS

LABELS, COLUMN, GUTTER = 190, 86, 8  # widths in pixels
LINE, HEADING, TOP, BOTTOM = 17, 34, 74, 24  # heights
LIMIT = 8  # bars end at this many times faster or slower
STYLE = """\
text { font: 11px system-ui, sans-serif; fill: #57606a }
.title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.name, .group { font-weight: 600; fill: #1f2328 }
.value { font-size: 10px; font-variant-numeric: tabular-nums }
.ours { fill: #0a6ed1 } text.ours { font-weight: 600 }
.bar { fill: #afb8c1 } .axis { stroke: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title, .name, .group { fill: #f0f6fc }
  .ours { fill: #58a6ff } .bar { fill: #57606a } .axis { stroke: #6e7681 }
}"""


def drawn(results: Results) -> str:
    """The chart as SVG; peers that serve no row have no column."""
    names = [
        name
        for name in results.peers
        if name != SDPA and any(row.ratio(SDPA, name) for row in results.rows)
    ]
    width = LABELS + len(names) * COLUMN + GUTTER
    body, height = [], TOP
    for work, title in WORKS.items():
        for precision in dict.fromkeys(row.precision for row in results.rows):
            if rows := results.chosen(work, precision):
                body.append(_text(0, height + 22, f"{title}, {precision}", "group"))
                height += HEADING
                body += _axes(names, height, height + LINE * len(rows))
                for row in rows:
                    body += _line(row, names, height)
                    height += LINE
    height += BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            "<title>Time relative to PyTorch's SDPA, for each case and peer</title>",
            f"<style>{STYLE}</style>",
            *_heads(names),
            *body,
            "</svg>\n",
        ]
    )


def _heads(names: list[str]) -> Iterator[str]:
    """The title, how to read it, and the peers' names."""
    yield _text(0, 18, "How many times as fast as PyTorch's SDPA", "title")
    reading = (
        f"The line is SDPA; to the right faster, to the left slower (log scale, cut at {LIMIT})."
    )
    yield _text(0, 38, reading)
    for i, name in enumerate(names):
        kind = "name ours" if name == REGARD else "name"
        yield _text(_middle(i), TOP - 8, name, kind, "middle")


def _axes(names: list[str], top: int, bottom: int) -> Iterator[str]:
    """The lines that stand for SDPA beside one group of rows."""
    for i in range(len(names)):
        x = _middle(i)
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _line(row: Row, names: list[str], top: int) -> Iterator[str]:
    """One case: its name, and a bar and a number for each peer."""
    middle = top + LINE - 5
    yield _text(LABELS - 2 * GUTTER, middle, row.case, anchor="end")
    reach = (COLUMN - GUTTER) / 2
    for i, name in enumerate(names):
        ratio, x = row.ratio(SDPA, name), _middle(i)
        if ratio is None:
            yield _text(x + 4, middle, "-", "value")  # docs/speed.md says why
            continue
        end = x + reach * max(-1.0, min(1.0, math.log(ratio) / math.log(LIMIT)))
        ours = name == REGARD
        yield (
            f'<rect class="{"ours" if ours else "bar"}" x="{min(x, end):.1f}" y="{top + 3}" '
            f'width="{abs(end - x):.1f}" height="{LINE - 6}"/>'
        )
        # The number stands on the free side of the line.
        faster = ratio >= 1
        label = f"{ratio:.1f}" if ratio >= 0.95 else f"{ratio:.2f}"
        anchor = "end" if faster else "start"
        kind = "value ours" if ours else "value"
        yield _text(x - 4 if faster else x + 4, middle, label, kind, anchor)


def _middle(column: int) -> float:
    return LABELS + (column + 0.5) * COLUMN


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
