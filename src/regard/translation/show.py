"""An alignment in the terminal, and as a page of its own."""

import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regard._watch.files import replacing
from regard.draw.terminal import percent, printable
from regard.translation.translator import Translation
from regard.translation.words import ByWord, by_word

SHOWN = 3  # source words beside a target word, at most,
LEAST = 0.1  # of this weight, at least; the greatest is always shown
BAR = 10  # cells of a weight of one
WIDE = 300  # cells of a line that no terminal shows

STYLE = """\
:root { color-scheme: light dark; --glow: 240 148 24; --quiet: #6b655b }
@media (prefers-color-scheme: dark) { :root { --glow: 224 130 24; --quiet: #a49c8f } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem;
  padding: 0 1.5rem; background: Canvas }
h1 { font-size: 1rem } p.quiet { color: var(--quiet) }
.wide { overflow: auto; max-height: 90vh; margin: 1rem 0 3rem }
table { border-collapse: collapse } th { font-weight: 400; background: Canvas; position: sticky }
thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .4rem 0; top: 0; z-index: 1 }
tbody th { text-align: right; padding-right: .6rem; white-space: nowrap; left: 0 }
td { width: 2.4rem; min-width: 2.4rem; height: 1.7rem; text-align: center; font-size: 11px;
  font-variant-numeric: tabular-nums; border: 1px solid rgb(128 128 128 / 15%);
  background: rgb(var(--glow) / var(--w, 0)) }
thead td { border: 0; background: Canvas; position: sticky; left: 0; top: 0; z-index: 2 }"""


def told(layer: int, layers: int) -> str:
    """What an alignment is, in one sentence."""
    which = "the decoder's cross-attention"
    if layers > 1:
        which += f" in layer {layer} (of layers 0 to {layers - 1})"
    return (
        f"Weights of {which}, the mean of its heads, when each word was written: "
        "where the model looked, which need not be what a word means."
    )


def print_alignment(translation: Translation, console: Console) -> None:
    """Each target word with the source words that it looked at most."""
    words = by_word(translation)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(justify="right", overflow="fold")
    for _ in range(SHOWN):
        table.add_column(overflow="fold")
    for row, word in enumerate(words.target):
        table.add_row(Text(printable(word), "bold"), *_cells(words, row))
    if console.is_terminal:
        console.print(table)
        return
    plain = io.StringIO()  # a pipe or file has room for whole words, and no colours
    Console(file=plain, width=WIDE).print(table)
    for line in plain.getvalue().splitlines():
        console.out(line.rstrip(), highlight=False)


def _cells(words: ByWord, row: int) -> list[Text]:
    weights = words.weights[row]
    ranked = np.argsort(-weights, kind="stable")[:SHOWN]
    cells = []
    for place, column in enumerate(ranked):
        weight = float(weights[column])
        if place and weight < LEAST:
            break
        bar = "━" * max(1, round(weight * BAR))
        name = printable(words.source[column])
        cells.append(Text.assemble(name, " ", (bar, "yellow"), (f" {percent(weight)}", "dim")))
    return cells


def write_page(translations: Sequence[Translation], path: Path, caption: str) -> None:
    """Every alignment as a matrix, target words below each other, source words side by side.

    Raises:
        FileError: the page cannot be written.
    """
    body = "".join(_matrix(t) for t in translations if t.tokens[0])
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>regard translate</title>'
        f"\n<style>{STYLE}</style>\n<h1>Alignments</h1>\n"
        f'<p class="quiet">{html.escape(caption)} A row for each word that was written, a column '
        f"for each that was read; weights in percent.</p>\n{body}</html>\n"
    )
    with replacing(path) as stream:
        stream.write(page.encode())


def _matrix(translation: Translation) -> str:
    words = by_word(translation)
    head = "".join(f"<th>{_escaped(word)}</th>" for word in words.source)
    rows = "".join(
        f"<tr><th>{_escaped(word)}</th>{''.join(map(_cell, weights))}</tr>\n"
        for word, weights in zip(words.target, words.weights.tolist(), strict=True)
    )
    return (
        f"<p>{_escaped(translation.source)}<br><b>{_escaped(translation.target)}</b></p>\n"
        f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _cell(weight: float) -> str:
    if weight < 0.005:
        return "<td></td>"
    number = f"{100 * weight:.0f}" if weight >= 0.05 else ""
    return f'<td style="--w:{weight:.2f}" title="{percent(weight)}">{number}</td>'


def _escaped(text: str) -> str:
    return html.escape(printable(text))
