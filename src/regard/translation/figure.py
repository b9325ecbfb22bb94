"""BLEU by length of the source, as SVG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Greys and colours that stand out from white and from black: the ground is the reader's.
GREY, COLOURS = "#808890", ("#c2701c", "#2f81d8", "#2a9d4a")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "regard",  # the same bytes every time
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}

Points = Sequence[tuple[float, float, float]]  # words, BLEU, half an interval


def drawn(series: Sequence[tuple[str, Points]]) -> bytes:
    """Lines with an interval at every point."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        there = [(name, points) for name, points in series if points]
        for name, points in there:
            words, bleu, around = zip(*points, strict=True)
            axes.errorbar(words, bleu, around, label=name, marker="o", markersize=4, capsize=2)
        axes.set(xlabel="words of the source", ylabel="BLEU, with 95% intervals")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if there:
            figure.legend(loc="outside upper left", ncols=2)
        return saved(figure)


def saved(figure: Figure) -> bytes:
    """A figure as SVG, on the reader's ground."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
