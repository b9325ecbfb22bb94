"""One text seen through one model as a page of its own: offline, with the numbers inside.

A page holds, for each layer, what takes less room: its weights as logarithms, or its queries and
keys, from which the page computes the weights it is asked for. Queries and keys are stored as
16-bit integers, with a unit for each head and dimension. IEEE half precision takes the same room
and is worse: it spends bits on a range of magnitudes that one dimension does not have. Of SmolLM2's
and MiniLM's weights above 1e-4 on 500 tokens of English it moved some by 1.9%, integers by 0.2%.

Where not every layer fits, the mean of all heads of all layers is kept beside those that do, like a
layer of one head. Where that does not fit either, the page has it for the word that it opens with,
and for others the mean of the layers that are there. So it always opens with the numbers of the
terminal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regard._arrays import float64, restore
from regard._errors import LimitError
from regard._problem import Problem
from regard._weights import Weights
from regard.draw.html import Spec, base64_of, codes, described, filled, put
from regard.draw.layer import Layer
from regard.draw.look import Look

BUDGET = 9_800_000  # bytes of numbers, so that a page stays under 10 MB. One layer may take more,
LARGEST = 100_000_000  # up to this
MEAN = 4  # of the budget, the part that the mean of all layers may take: a quarter, for 958 tokens
PRECISE = 0.005  # 16 bits are enough while no checked weight is off by more
SEEN = 1e-4  # weights below this are not checked
CHECKED = 2**20  # weights computed for the check of a layer, at most

SCRIPTS = ("page_weights.js", "page_map.js", "page_heads.js", "page.js")


class Kept(NamedTuple):
    """What a page holds of a look.

    Attributes:
        look: through the layers that were kept.
        mean: whether its mean of all is that of all layers, also of those that were left out.
    """

    look: Look
    mean: bool


def write(
    look: Look,
    path: Path,
    *,
    word: int,
    layers: Sequence[int] = (),
    head: int | None = None,
    budget: int = BUDGET,
) -> Kept:
    """Write the page of a look, opened at a word, a layer and a head.

    Args:
        path: of the file, which is replaced in one step.
        word: its place among `look.words`.
        layers: to be kept before others, and what the page opens with: one, or the mean of
            several. All unless given.
        head: of that one layer.
        budget: bytes for the numbers. What does not fit is left out, layer by layer, the least
            telling first; the page says so.

    Raises:
        OptionError: no such layer or head, or the path cannot be written.
        LimitError: a single layer takes too much.
        ModelError: weights of some layer are NaN.
    """
    for layer in look.layers:
        layer.check()
    asked = look.only(layers).layers if layers else ()
    kept = _fitting(look, asked, budget)
    opened = look.only(layers, head).layers[0].number if len(asked) == 1 else None
    numbers = [layer.number for layer in asked]
    put(path, render(kept, look, word=word, layer=opened, head=head, asked=numbers))
    return kept


def render(
    kept: Kept,
    look: Look,
    *,
    word: int,
    layer: int | None = None,
    head: int | None = None,
    asked: Sequence[int] = (),
) -> str:
    """The page as text.

    Args:
        kept: what it holds of the look.
        word, layer, head: what it opens with.
        asked: the layers that were asked for; the others that were kept tell most.
    """
    data = payload(kept, look)
    data["open"] = {"word": word, "layer": layer, "head": head}
    data["asked"] = list(asked)
    data["told"] = None if _follows(kept, look, asked) else _told(look.only(asked or None), word)
    return filled("page.html.j2", ("page.css",), SCRIPTS, data, look=look)


def payload(kept: Kept, look: Look) -> Spec:
    """What the page knows: words, for each layer its numbers, and which layers it does not hold.

    The mean of all heads goes in where it does not follow from the layers that were kept.
    """
    left = [layer.number for layer in look.layers if layer not in kept.look.layers]
    masks: list[Spec] = []
    specs = []
    for layer in kept.look.layers:
        spec = _encode(layer)
        if "query" in spec:
            mask = {"start": base64_of(layer.sight.start, "<i4")}
            mask["stop"] = base64_of(layer.sight.stop, "<i4")
            if mask not in masks:
                masks.append(mask)
            spec["mask"] = masks.index(mask)
        specs.append(spec)
    return {
        "model": look.model,
        "causal": look.causal,
        "size": len(look.tokens),
        "words": described(look),
        "generated": look.generated.start,
        "masks": masks,
        "layers": specs,
        "left": left,
        "mean": _mean(look) if left and kept.mean else None,
    }


def _follows(kept: Kept, look: Look, asked: Sequence[int]) -> bool:
    """Whether what the page opens with follows from the layers that were kept, or their mean."""
    held = {layer.number for layer in kept.look.layers}
    if not asked and kept.mean:
        return True
    return held.issuperset(asked or [layer.number for layer in look.layers])


def _told(look: Look, word: int) -> Spec:
    """One word in both directions, as means over all heads of a look."""
    gaze = look.gaze(word)
    away, back = gaze.looks_at(), gaze.looked_at_by()
    means = {"first": look.first, "special": look.specials, "learned": look.learned}
    numbers = {name: x.mean(axis=0) for name, x in means.items()}
    numbers |= {"gives": away.weight, "gets": back.weight}
    hidden = {"hiddenAway": away.unseen.tolist(), "hiddenBack": back.unseen.tolist()}
    return {"word": word, **{name: base64_of(x, "<f4") for name, x in numbers.items()}, **hidden}


def _fitting(look: Look, first: Iterable[Layer], budget: int) -> Kept:
    """As much of a look as the budget holds: the mean, some layers, then the most telling ones."""
    sizes = {layer.number: min(_sizes(layer)) for layer in look.layers}
    if sum(sizes.values()) <= budget:
        return Kept(look, mean=True)
    length = len(look.tokens)
    if mean := _stored_size(1, length) * MEAN <= budget:
        budget -= _stored_size(1, length)
    chosen = [layer.number for layer in first]
    told = look.information()
    by_information = [look.layers[i].number for i in np.argsort(-told, kind="stable")]
    kept: list[int] = []
    for number in dict.fromkeys([*chosen, *by_information]):
        if kept and sum(sizes[n] for n in kept) + sizes[number] > budget:
            break
        kept.append(number)
    if sizes[kept[0]] > LARGEST:
        raise LimitError(
            f"page: layer {kept[0]} alone takes {sizes[kept[0]]:,} bytes, and at most "
            f"{LARGEST:,} are written; needs a shorter text"
        )
    return Kept(look.only(kept), mean)


def _sizes(layer: Layer) -> tuple[int, ...]:
    """Bytes of a layer in base64: as weights, and as queries and keys if those are enough."""
    problem = layer.weights.problem
    length = problem.L
    weights = _stored_size(problem.heads, length)
    if not _computable(layer):
        return (weights,)
    vectors = (problem.heads + problem.kv_heads) * length * problem.d_k * 2
    return weights, (vectors + problem.heads * length * 4) * 4 // 3


def _stored_size(heads: int, length: int) -> int:
    return heads * length * length * 2 * 4 // 3


def _computable(layer: Layer) -> bool:
    """Whether the page can compute the weights: products without a bias, and one run of keys for
    each query."""
    problem = layer.weights.problem
    return problem.bias is None and problem.score is None and layer.sight.unbroken


def _encode(layer: Layer) -> Spec:
    problem = layer.weights.problem
    spec: Spec = {"number": layer.number, "heads": problem.heads, "names": list(layer.heads)}
    sizes = _sizes(layer)
    spec |= _stored(layer) if sizes[0] == min(sizes) else _products(layer)
    if problem.sinks is not None:
        spec["learned"] = base64_of(layer.learned, "<f4")
    return spec


def _stored(layer: Layer) -> Spec:
    every = slice(0, layer.weights.problem.L)
    return {"weights": codes(layer.tile(every, every))}


def _mean(look: Look) -> Spec:
    """The mean of all heads of all layers, as if it were one head."""
    length = len(look.tokens)
    total = np.zeros((length, length))
    for layer in look.layers:
        # Bins of one token each: what a kernel computes in a twentieth of a tile's time.
        total += float64(layer.weights.pooled(length, length)).sum(axis=0)
    weights = codes(total / look.heads)
    learned = np.concatenate([layer.learned for layer in look.layers]).mean(axis=0)
    return {"number": None, "heads": 1, "weights": weights, "learned": base64_of(learned, "<f4")}


def _products(layer: Layer) -> Spec:
    """Queries and keys in 16 bits, or, where the weights need more, in 32."""
    problem = layer.weights.problem
    query, key = float64(problem.query) * problem.scale, float64(problem.key)
    spec = {"kvHeads": problem.kv_heads, "width": problem.d_k, "softcap": problem.softcap}
    for bits in (16, 32):
        stored_query, query_unit = _fixed(query) if bits == 16 else _single(query)
        stored_key, key_unit = _fixed(key) if bits == 16 else _single(key)
        again = _again(problem, stored_query * query_unit, stored_key * key_unit)
        if bits == 32 or _error(layer, again) <= PRECISE:
            break
    unit = query_unit[:, 0] * np.repeat(key_unit[:, 0], problem.heads // problem.kv_heads, axis=0)
    kind = "<i2" if bits == 16 else "<f4"
    return spec | {
        "bits": bits,
        "query": base64_of(stored_query, kind),
        "key": base64_of(stored_key, kind),
        "unit": base64_of(unit, "<f4"),
        "lse": base64_of(float64(again.lse()), "<f4"),
    }


def _fixed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(heads, L, d) as integers of 16 bits, and the unit of each head and dimension."""
    unit = np.maximum(np.abs(x).max(axis=1, keepdims=True, initial=0.0) / 32767, 1e-30)
    return np.rint(x / unit), unit


def _single(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.astype(np.float32).astype(np.float64), np.ones((x.shape[0], 1, x.shape[2]))


def _again(problem: Problem, query: np.ndarray, key: np.ndarray) -> Weights:
    """The weights that stored queries, scaled already, and keys give."""
    query, key = (restore(x, problem.query) for x in (query, key))
    return Weights(replace(problem, query=query, key=key, scale=1.0))


def _error(layer: Layer, again: Weights) -> float:
    """The greatest relative error of a weight, over evenly spread rows."""
    problem = layer.weights.problem
    rows = max(1, CHECKED // max(1, problem.heads * problem.S))
    spread = slice(0, problem.L, -(-problem.L // rows))
    true, found = (float64(w[:, spread, :]) for w in (layer.weights, again))
    large = true > SEEN
    return float(np.abs(found[large] / true[large] - 1.0).max(initial=0.0))
