"""What the terminal and the page show of a word, as plain numbers for other programs."""

from typing import Any

from regard.draw.look import Gaze, Seen
from regard.draw.overview import Overview

STRONGEST = 20


def numbers(gaze: Gaze) -> dict[str, Any]:
    """A word in both directions, as what `json.dumps` takes.

    Weights are means over the heads of the look; a share is the part of what is not left out. Words
    are given by their place in "words".
    """
    look, out = gaze.look, gaze.left_out
    return {
        "model": look.model,
        "text": look.text,
        "tokens": list(look.tokens),
        "words": [word._asdict() for word in look.words],
        "causal": look.causal,
        "layers": [{"layer": layer.number, "heads": list(layer.heads)} for layer in look.layers],
        "word": gaze.index,
        "left_out": {"first": out.first, "special": out.special, "learned": out.learned},
        "looks_at": _per_word(gaze.looks_at()),
        "looked_at_by": _per_word(gaze.looked_at_by()),
        "strongest": [found._asdict() for found in gaze.strongest(STRONGEST)],
    }


def numbers_of_whole(overview: Overview) -> dict[str, Any]:
    """A long text as a whole, as what `json.dumps` takes; see `Overview` and `LayerView`.

    Shares are parts of 1. Entropy is in bits, as its name says; that of a `Trace` is in nats.
    """
    look = overview.look
    return {
        "model": look.model,
        "tokens": list(look.tokens),
        "words": [word._asdict() for word in look.words],
        "whole": overview.whole,
        "causal": look.causal,
        "shares": overview.shares.tolist(),
        "edges": overview.edges.tolist(),
        "map": overview.map.tolist(),
        "layers": [
            {
                "layer": layer.number,
                "heads": list(layer.heads),
                "aside": layer.aside.tolist(),
                "near": layer.near.tolist(),
                "far": layer.far.tolist(),
                "entropy_bits": layer.entropy_bits.tolist(),
            }
            for layer in overview.layers
        ],
    }


def _per_word(seen: Seen) -> list[dict[str, Any]]:
    return [
        {
            "word": index,
            "weight": float(seen.weight[index]),
            "share": float(seen.share[index]),
            "visible": not seen.unseen[index],
            "left_out": bool(seen.absent[index]),
        }
        for index in range(len(seen.weight))
    ]
