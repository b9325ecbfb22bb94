"""Small made-up looks, and the dense matrices that their numbers are tested against."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import regard
from regard._problem import make_problem
from regard._watch import Word
from regard._weights import Weights
from regard.draw.layer import Layer
from regard.draw.look import Look
from regard.draw.run import prepare

# Tokens of each word of the text, and where a word begins with no blank before it.
SIZES = (1, 2, 1, 3, 1, 1, 2, 1)
TEXT = "Here are eight words , all made up"


def make_look(
    sizes: Sequence[int] = SIZES,
    text: str = TEXT,
    *,
    special: Sequence[int] = (),
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
    spread: float = 1.5,
    seed: int = 0,
    mask: Any = None,
    sinks: bool = False,
    **options: Any,
) -> Look:
    """A look at random queries and keys.

    Args:
        sizes: tokens of each word of the text.
        special: the places of words that are special tokens.
        spread: standard deviation of queries and keys; a greater one makes sharper weights.
        mask, options: of every layer's attention.
        sinks: whether each layer has learned sinks.
    """
    rng = np.random.default_rng(seed)
    names = text.split(" ")
    ends = np.cumsum(sizes)
    words = [
        Word(name, int(end) - size, int(end), i in special)
        for i, (name, size, end) in enumerate(zip(names, sizes, ends, strict=True))
    ]
    L = int(ends[-1])
    made = []
    for number in range(layers):
        query = rng.standard_normal((heads, L, width), dtype=np.float32) * spread
        key = rng.standard_normal((kv_heads, L, width), dtype=np.float32) * spread
        logits = rng.standard_normal(heads).astype(np.float32) if sinks else None
        problem = make_problem(query, key, None, mask=mask, sinks=logits, **options)
        made.append(Layer(number, tuple(range(heads)), Weights(problem)))
    tokens = tuple(f"t{i}" for i in range(L))
    return Look("made-up", text, tokens, tuple(words), tuple(made), L)


def run(model: Any, tokenizer: Any, text: str, name: str) -> Look:
    reading = prepare(model, tokenizer, text, name=name)
    return reading.look(reading.run())


def dense(look: Look) -> np.ndarray:
    """(heads of all layers, L, L) in float64."""
    return np.concatenate([np.asarray(layer.weights, np.float64) for layer in look.layers])


def per_word(look: Look, matrix: np.ndarray) -> np.ndarray:
    """(heads, words, words): rows averaged and columns summed over the tokens of words."""
    spans = [slice(word.start, word.stop) for word in look.words]
    rows = np.stack([matrix[:, span].mean(axis=1) for span in spans], axis=1)
    return np.stack([rows[..., span].sum(axis=-1) for span in spans], axis=-1)


CAUSAL = regard.causal()
