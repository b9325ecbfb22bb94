"""The layers of a trace in a file: what is said of each, and its tensors."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard._arrays import tensor
from regard._errors import FileError, OptionError, ShapeError
from regard._observation import Observation, Peak, Top
from regard._problem import make_problem
from regard._score import Additive, additive
from regard._watch.layer import Layer
from regard._watch.trace_masks import describe_bias, describe_mask, read_bias, read_mask
from regard._watch.trace_tensors import Contents, Opened, flag, member, several, string, whole
from regard._weights import Weights

SEQUENCES = ("input", "decoder", "other")
SIZES = {  # of each statistic after batch and heads; None where the file tells
    "lse": ("L",),
    "entropy": ("L",),
    "peak": ("L",),
    "top": ("L", None),
    "received": ("S",),
    "map": (None, None),
    "spans": (None, None),
    "sink": ("L",),
}


def describe_layer(
    layer: Layer, contents: Contents, rounding: torch.dtype | None
) -> dict[str, Any]:
    """A layer as JSON, its arrays among the contents.

    Args:
        rounding: what queries and keys become; None where they stay as they are.

    Raises:
        OptionError: they cannot be rounded so.
        FileError: its mask or bias cannot be described.
    """
    at = f"layers.{layer.number}"
    kept = layer.kept
    weights = None if kept is None else _describe_weights(kept, at, layer.name, contents, rounding)
    observation: dict[str, Any] = {}
    for field in fields(layer.observation):
        value: Any = getattr(layer.observation, field.name)
        name = f"{at}.{field.name}"
        if isinstance(value, tuple):
            observation[field.name] = [contents.put(name, x) for x in value]
        elif value is not None:
            observation[field.name] = contents.put(name, value)
    return {
        **layer.described(),
        "observation": observation,
        "weights": weights,
    }


def _describe_weights(
    weights: Weights, at: str, layer: str, contents: Contents, rounding: torch.dtype | None
) -> dict[str, Any]:
    problem = weights.problem
    query, key = tensor(problem.query), tensor(problem.key)
    # Rounded numbers have another lse: with that of the run their rows would not sum to 1. It is
    # not computed here, which took as long as the run itself, but when weights are asked for, for
    # their rows: mostly those of a word, or of a tile.
    lse = weights.known_lse
    if rounding is not None and rounding != query.dtype:
        _check_range(query, key, rounding, layer)
        lse = None
    return {
        "query": contents.put_large(f"{at}.query", query, rounding),
        "key": contents.put_large(f"{at}.key", key, rounding),
        "lse": None if lse is None else contents.put(f"{at}.weights.lse", _narrow(lse)),
        "scale": problem.scale,
        "softcap": problem.softcap,
        "sinks": None if problem.sinks is None else contents.put(f"{at}.sinks", problem.sinks),
        "mask": describe_mask(problem.mask, contents),
        "bias": describe_bias(problem.bias, contents),
        "score": _describe_score(problem.score, at, contents),
    }


def _describe_score(score: Additive | None, at: str, contents: Contents) -> Any:
    if score is None:
        return None
    return {"kind": "additive", "vector": contents.put(f"{at}.vector", score.vector)}


def _read_score(found: Any, opened: Opened) -> Additive:
    if member(found, "kind") != "additive":
        raise FileError(f"score: got {found!r:.60}, which this version of regard does not know")
    return additive(opened.get(member(found, "vector"), "vector", "numbers"))


def _check_range(query: Tensor, key: Tensor, rounding: torch.dtype, layer: str) -> None:
    """Raises OptionError: rounded numbers would be infinite."""
    for before in (query, key):
        after = before.detach().to(rounding)
        if not bool(after.isfinite().all()) and bool(before.isfinite().all()):
            raise OptionError(
                f"dtype: {str(rounding)[6:]} ends at {torch.finfo(rounding).max:.3g}, and {layer} "
                f"holds {float(before.abs().max()):.3g}; needs bfloat16 or float32"
            )


def _narrow(lse: Any) -> Tensor:
    """In 32 bits, if that changes nothing."""
    exact = tensor(lse, "cpu")
    short = exact.to(torch.float32)
    return short if np.array_equal(short.numpy(), exact.numpy(), equal_nan=True) else exact


def read_layer(number: int, name: str, description: Any, opened: Opened) -> Layer:
    """The layer of a description.

    Raises:
        FileError, and what problems raise: it cannot be.
    """
    queries, keys = (_read_range(member(description, side), side) for side in ("queries", "keys"))
    given = several(member(description, "heads"), "heads")
    heads = tuple(whole(head, "heads") for head in given)
    sequence = string(member(description, "sequence"), "sequence")
    if sequence not in SEQUENCES:
        raise FileError(f"sequence: got {sequence!r:.60}; needs one of {', '.join(SEQUENCES)}")
    observation = _read_observation(member(description, "observation"), opened)
    seen: Any = observation.lse
    if seen.ndim != 3:
        raise ShapeError(f"lse: got shape {tuple(seen.shape)}; needs (batch, heads, L)")
    batch = tuple(seen.shape[:-2])
    full = (*batch, len(heads), len(queries), len(keys))
    _check_sizes(observation, full)
    kept = member(description, "weights")
    weights = None if kept is None else _read_weights(kept, opened)
    if weights is not None and weights.shape != full:
        raise ShapeError(f"weights: got shape {weights.shape}; needs {full}")
    return Layer(
        number=number,
        name=name,
        heads=heads,
        queries=queries,
        keys=keys,
        sequence=sequence,
        cross=flag(member(description, "cross"), "cross"),
        observation=observation,
        kept=weights,
    )


def _read_range(x: Any, what: str) -> range:
    ends = [whole(end, what) for end in several(x, what)]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise FileError(f"{what}: got {ends!r:.60}; needs a start and a stop")
    return range(*ends)


def _read_observation(found: Any, opened: Opened) -> Observation:
    member(found, "lse")
    read: dict[str, Any] = {}
    for name, value in found.items():
        if name not in SIZES:
            raise FileError(f"observation: got {name!r:.60}, which this regard does not know")
        if name in ("peak", "top"):
            kinds = ("numbers", "integers") if name == "peak" else ("integers", "numbers")
            names = several(value, name)
            if len(names) != 2:
                raise FileError(f"{name}: got {len(names)} tensors; needs weights and keys")
            parts = [opened.get(x, name, kind) for x, kind in zip(names, kinds, strict=True)]
            read[name] = Peak(*parts) if name == "peak" else Top(*parts)
        else:
            read[name] = opened.get(value, name, "numbers")
    if read["lse"].ndim < 2:
        raise ShapeError(f"lse: got shape {tuple(read['lse'].shape)}; needs (*batch, heads, L)")
    return Observation(**read)


def _check_sizes(observation: Observation, full: tuple[int, ...]) -> None:
    *lead, L, S = full
    for name, sizes in SIZES.items():
        value: Any = getattr(observation, name)
        for x in value if isinstance(value, tuple) else () if value is None else (value,):
            needed = (*lead, *({"L": L, "S": S}.get(size or "", size) for size in sizes))
            fits = len(x.shape) == len(needed)
            if not fits or any(n not in (None, m) for n, m in zip(needed, x.shape, strict=True)):
                raise ShapeError(f"{name}: got shape {tuple(x.shape)}; needs {needed}")
        if isinstance(value, tuple):
            keys: Any = value[1] if isinstance(value, Peak) else value[0]
            if keys.numel() and not (int(keys.min()) >= -1 and int(keys.max()) < S):
                raise FileError(f"{name}: names keys beyond the {S} that there are")


def _read_weights(found: Any, opened: Opened) -> Weights:
    def maybe(name: str, read: Callable[[Any], Any]) -> Any:
        value = member(found, name)
        return None if value is None else read(value)

    problem = make_problem(
        opened.get(member(found, "query"), "query", "numbers"),
        opened.get(member(found, "key"), "key", "numbers"),
        None,
        mask=read_mask(member(found, "mask"), opened),
        bias=read_bias(member(found, "bias"), opened),
        scale=_number(member(found, "scale"), "scale"),
        softcap=maybe("softcap", lambda x: _number(x, "softcap")),
        sinks=maybe("sinks", lambda x: opened.get(x, "sinks", "numbers")),
        score=maybe("score", lambda x: _read_score(x, opened)),
    )
    return Weights(problem, maybe("lse", lambda x: opened.get(x, "lse", "numbers")))


def _number(x: Any, what: str) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)) or abs(x) > 1e300:
        raise FileError(f"{what}: got {x!r:.60}; needs a number")
    return float(x)
