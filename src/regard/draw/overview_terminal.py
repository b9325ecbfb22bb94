"""A long text in the terminal: the map of its weight, the words that get most, the layers."""

from collections.abc import Iterator

import numpy as np
from rich.console import Console, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from regard._observation import bins
from regard.draw.overview import LONGEST, NEAR, LayerView, Overview, shortened
from regard.draw.terminal import (
    BLANK,
    MARGIN,
    beginning,
    colour,
    head,
    head_name,
    percent,
    printable,
    put,
    shaded,
)

# A picture with a ground of its own: brown to bright amber, oklch from 24% .01 75 to 84% .16 78.
HEAT = (
    "#211f1c",
    "#352b1f",
    "#4d3a20",
    "#67491d",
    "#835917",
    "#a16a10",
    "#bf7c10",
    "#de9021",
    "#fba83f",
)
SHADES = " ·░▒▓█"  # without colours
LOWEST, HIGHEST = 0.25, 0.998  # quantiles between which the shades of a map run
SIDE = 64  # cells of the map, at most
RANKED = 12
AROUND = 4  # words on either side of one that is ranked
BAR = 24
PARTS = (("░", "#6b655b"), ("▒", "#a3855c"), ("█", "#f49411"))  # of a layer's bar


def show(overview: Overview, console: Console) -> None:
    """Print the map, the words that get most, and a line for each layer."""
    parts: list[RenderableType] = [head(overview.look)]
    if overview.whole is not None:
        parts.append(Text(beginning(overview.look, overview.whole), "dim"))
    parts += [BLANK, Text("Where the text looks", "bold"), BLANK]
    parts += _map(overview.map, console)
    parts += [
        Text("From each place of the text, top to bottom, to each place, left to right.", "dim"),
        BLANK,
        Text("The words that get most", "bold"),
        BLANK,
        _words(overview, console),
        BLANK,
        Text("The layers", "bold"),
        BLANK,
        _layers(overview, console),
        BLANK,
        *(Text(note, "dim") for note in _notes(overview)),
    ]
    put(console, parts)


def _notes(overview: Overview) -> tuple[str, ...]:
    return (
        f"aside: {_aside(overview)}, where heads rest that have nothing to look at.",
        "The shares of words are of the rest.",
        f"near: the {NEAR} tokens on either side; far: all others. bits: the entropy of a row.",
        "farthest: the head that looks far most; L2H5 is head 5 of layer 2.",
    )


def _map(weights: np.ndarray, console: Console) -> Iterator[Text]:
    """The map in half blocks, two rows to a line; or in characters where there are no colours."""
    coloured = shaded(console)
    side = max(1, min(SIDE, len(weights), console.width - 2 * MARGIN))
    levels = _levels(weights, side, side if coloured else (side + 1) // 2)
    if not coloured:
        at = np.ceil(levels.clip(0) * (len(SHADES) - 1)).astype(int)
        yield from (Text("".join(SHADES[i] for i in row)) for row in at)
        return
    for top, bottom in zip(levels[::2], [*levels[1::2], np.full(side, -1.0)], strict=False):
        line = Text()
        for above, below in zip(top, bottom, strict=True):
            line.append("▀", Style(color=_heat(above), bgcolor=_heat(below)))
        yield line


def _levels(weights: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """(rows, columns), how bright each cell is, 0 to 1 by the logarithm; -1 where no weight is."""
    size = len(weights)
    edges = [bins(size, min(count, size)) for count in (rows, columns)]
    pooled = np.array([weights[a:b].mean(axis=0) for a, b in edges[0]])
    pooled = np.stack([pooled[:, a:b].sum(axis=1) for a, b in edges[1]], axis=1)
    some = pooled > 0
    if not some.any():
        return np.full(pooled.shape, -1.0)
    low, high = np.log(np.quantile(pooled[some], (LOWEST, HIGHEST)))
    with np.errstate(divide="ignore"):
        levels = (np.log(pooled) - low) / max(high - low, 1e-9)
    return np.asarray(np.where(some, levels.clip(0.0, 1.0), -1.0))


def _heat(level: float) -> str:
    return HEAT[0] if level < 0 else HEAT[1 + round(level * (len(HEAT) - 2))]


def _words(overview: Overview, console: Console) -> Table:
    look, shares = overview.look, overview.shares
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("token", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    ranked = overview.ranked(RANKED)
    # Cut here: Rich would take from every column where the lines are too long.
    numbers = 5 + max(5, len(f"{len(look.tokens):,}"))
    room = console.width - 2 * MARGIN - LONGEST - numbers - 9
    for index in ranked:
        word, part = look.words[index], shares[index] / shares[ranked[0]]
        told = printable(shortened(word.text))
        name = Text(told, Style(color=colour(part)) if shaded(console) else "")
        before, after = overview.around(index, AROUND)
        where = Text.assemble((printable(before), "dim"), told, (printable(after), "dim"))
        for cells, text in ((LONGEST, name), (max(room, 1), where)):
            text.truncate(cells, overflow="ellipsis")
        table.add_row(name, percent(shares[index]), f"{word.start:,}", where)
    return table


def _layers(overview: Overview, console: Console) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    tones = [Style(color=tone) if shaded(console) else "" for _, tone in PARTS]
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", width=BAR, no_wrap=True)
    for title, tone in zip(("aside", "near", "far"), tones, strict=True):
        table.add_column(Text(title, tone), justify="right", no_wrap=True)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("farthest", no_wrap=True)
    for layer in overview.layers:
        shares = [float(x.mean()) for x in (layer.aside, layer.near, layer.far)]
        table.add_row(
            str(layer.number),
            _bar(shares, shaded(console)),
            *map(percent, shares),
            f"{layer.entropy_bits.mean():.1f}",
            _farthest(layer),
        )
    return table


def _bar(shares: list[float], coloured: bool) -> Text:
    """The parts of a row's weight side by side, as wide as they are great."""
    stops = np.rint(np.cumsum([0.0, *shares]) / max(sum(shares), 1e-9) * BAR).astype(int)
    bar = Text()
    for (sign, tone), start, stop in zip(PARTS, stops[:-1], stops[1:], strict=True):
        bar.append(
            ("█" if coloured else sign) * (stop - start), Style(color=tone) if coloured else ""
        )
    return bar


def _farthest(layer: LayerView) -> Text:
    at = int(layer.far.argmax())
    name = head_name(layer.number, layer.heads[at])
    return Text.assemble((name, "dim"), f" {percent(layer.far[at])}")


def _aside(overview: Overview) -> str:
    look = overview.look
    told = "the first token"
    if look.special[1:].any():
        told = "the first and the special tokens"
    sinks = any(layer.weights.problem.sinks is not None for layer in look.layers)
    return told + (" and the learned sinks" if sinks else "")
