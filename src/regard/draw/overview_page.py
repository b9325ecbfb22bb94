"""A long text as a page of its own: offline, with the map of every layer inside."""

from pathlib import Path

from regard.draw.html import Spec, base64_of, codes, described, filled, put
from regard.draw.overview import NEAR, LayerView, Overview

RANKED = 30
AROUND = 6  # words on either side of one that is ranked


def write(overview: Overview, path: Path) -> None:
    """Write the page of an overview; a file of that name is replaced in one step.

    Raises:
        OptionError: the path cannot be written.
    """
    put(path, render(overview))


def render(overview: Overview) -> str:
    """The page as text."""
    styles, scripts = ("page.css", "overview.css"), ("overview_map.js", "overview.js")
    return filled("overview.html.j2", styles, scripts, payload(overview), look=overview.look)


def payload(overview: Overview) -> Spec:
    """What the page knows.

    A map takes 175 kB at most, so that those of 50 layers stay under 10 MB.
    """
    look = overview.look
    return {
        "model": look.model,
        "causal": look.causal,
        "size": len(look.tokens),
        "whole": overview.whole,
        "near": NEAR,
        "special": bool(look.special[1:].any()),
        "words": described(look),
        "generated": look.generated.start,
        "shares": base64_of(overview.shares, "<f4"),
        "edges": overview.edges.tolist(),
        "map": codes(overview.map),
        "ranked": [[index, *overview.around(index, AROUND)] for index in overview.ranked(RANKED)],
        "layers": [_layer(layer) for layer in overview.layers],
    }


def _layer(layer: LayerView) -> Spec:
    return {
        "number": layer.number,
        "heads": list(layer.heads),
        "map": codes(layer.map),
        "aside": layer.aside.tolist(),
        "near": layer.near.tolist(),
        "far": layer.far.tolist(),
        "bits": layer.entropy_bits.tolist(),
    }
