"""The pages' pictures, drawn from what their code computed: a function for each page."""

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from regard.translation.figure import STYLE, saved

# From the ground, whatever it is, to amber.
GLOW = mpl.colors.LinearSegmentedColormap.from_list("glow", ["#f4941100", "#f49411ff"])


def copying(names: dict[str, Any]) -> bytes:
    """Accuracy against length, of both models on both tasks."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        for axes, task in zip(figure.subplots(1, 2, sharey=True), names["TASKS"], strict=True):
            for kind, line in names["right"][task].items():
                axes.plot(list(line), list(line.values()), marker="o", markersize=4, label=kind)
            axes.axvline(names["LONGEST"], linestyle=":", color=mpl.rcParams["axes.edgecolor"])
            axes.set(xlabel="symbols", title=task, ylim=(0, 1.05))
        figure.axes[0].set_ylabel("symbols that are right")
        figure.axes[0].legend(loc="lower left")
        return saved(figure)


def recall(names: dict[str, Any]) -> bytes:
    """The weights of every head on one text."""
    trace = names["trace"]
    heads = [(layer, head) for layer in trace for head in layer.heads]
    with mpl.rc_context(STYLE | {"axes.spines.right": True, "axes.spines.top": True}):
        figure = Figure(figsize=(7.2, 7.4), layout="constrained")
        for axes, (layer, head) in zip(figure.subplots(2, 2).flat, heads, strict=True):
            axes.imshow(layer.weights[0, head][:], cmap=GLOW, vmin=0, vmax=1)
            half = 2 * names["PAIRS"] - 0.5  # where the asked part begins
            axes.axvline(half, linewidth=0.5, color=mpl.rcParams["axes.edgecolor"])
            axes.axhline(half, linewidth=0.5, color=mpl.rcParams["axes.edgecolor"])
            axes.set(title=f"layer {layer.number}, head {head}", xticks=[], yticks=[])
        return saved(figure)


def saturation(names: dict[str, Any]) -> bytes:
    """The gradient of a query against d, with and without the division."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for label, found in (("not divided", names["plain"]), ("divided by √d", names["scaled"])):
            axes.loglog(list(found), [row[2] for row in found.values()], marker="o", label=label)
        axes.set(xlabel="d", ylabel="gradient of a query, median")
        axes.set_xticks(names["SIZES"], [f"{d:,}" for d in names["SIZES"]])
        axes.minorticks_off()
        axes.legend()
        return saved(figure)
