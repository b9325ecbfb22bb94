"""A trace, what its file may claim and cannot be, and what the error says."""

from typing import Any

import numpy as np
import torch

import regard
from regard._observation import Observation, Peak, Top
from regard._problem import make_problem
from regard._watch import Layer
from regard._watch.words import Word
from regard._weights import Weights


def trace() -> regard.Trace:
    """A trace with some of everything."""
    rng = np.random.default_rng(1)
    query, key = (torch.from_numpy(rng.normal(size=(2, 2, 80, 4))).float() for _ in range(2))
    packed = regard.dense(rng.random((80, 80)) < 0.7)
    texts = np.arange(160).reshape(2, 80) // 30
    few = regard.documents(texts, texts)
    real = regard.padding(rng.random((2, 80)) < 0.8, rng.random((2, 80)) < 0.9)
    mask = (regard.prefix([3, 5], [1, 2]) & real) | (packed & few)
    found = regard.Trace(model={"class": "Model"})
    biases = [
        regard.alibi(torch.ones(2)),
        regard.relative(torch.randn(8, 2)),
        torch.randn(2, 1, 80),
    ]
    for number, bias in enumerate(biases):
        options: dict[str, Any] = {
            "mask": mask,
            "bias": bias,
            "softcap": 9.0,
            "sinks": torch.ones(2),
        }
        weights = Weights(make_problem(query, key, None, **options))
        seen = Observation(
            lse=weights.lse(),
            peak=Peak(*weights.peak()),
            top=Top(*weights.top(2)),
            received=weights.received(),
            map=weights.pooled(3, 4),
            entropy=weights.entropy(),
        )
        name = f"layers.{number}"
        found.add(Layer(number, name, (0, 3), range(80), range(80), "input", False, seen, weights))
    found.token_ids = torch.arange(160).reshape(2, 80)
    found.attention_mask = torch.ones(2, 80)
    found._tokenizer = Tokenizer()
    found.words = lambda entry, decoder=False: [
        Word("a", 0, 3),
        Word("b", 3, 4, True),
        Word("c", 4, 80),
    ]  # type: ignore
    found.text = lambda entry, decoder=False: "a b"  # type: ignore
    return found


class Tokenizer:
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"t{i}" for i in ids]


def nested(depth: int) -> Any:
    tree: Any = {"kind": "band", "offset": 0, "left": None, "right": 0, "first": None}
    for _ in range(depth):
        tree = {"kind": "both", "a": tree, "b": tree}
    return tree


def chain(depth: int) -> Any:
    leaf: Any = nested(0)
    tree = leaf
    for _ in range(depth):
        tree = {"kind": "either", "a": tree, "b": leaf}
    return tree


MASKS: list[tuple[Any, str]] = [
    (chain(65), "mask: is composed of more than 64 levels"),
    ({"kind": "os.system"}, "which this version of regard does not know"),
    ({"kind": ["band"]}, "which this version of regard does not know"),
    ({"kind": "both", "a": None, "b": None}, "which this version of regard does not know"),
    ({"kind": "band"}, 'description: needs "offset"'),
    (nested(0) | {"offset": "end"}, "offset: names the tensor 'end', which is not in the file"),
    (nested(0) | {"offset": 2**70}, "offset: got 1180591620717411303424; needs an integer from"),
    (nested(0) | {"offset": 1.5}, "offset: got 1.5; needs an integer"),
    (nested(0) | {"left": -1}, "band: got -1; needs an integer from 0"),
    (nested(0) | {"right": True}, "band: got True; needs an integer"),
    (nested(0) | {"first": -1}, "first: got -1; needs an integer from 0"),
    (nested(0) | {"first": "layers.0.query"}, "first: got F32; needs I64"),
    (
        {"kind": "padding", "keys": "layers.0.query", "queries": None},
        "padding: got F32; needs BOOL",
    ),
    ({"kind": "padding", "keys": {}, "queries": None}, "padding: names the tensor {}"),
    ({"kind": "documents", "queries": "token_ids", "keys": 3}, "documents: names the tensor 3"),
    (
        {"kind": "documents", "queries": "layers.0.peak.2", "keys": "token_ids"},
        r"query_ids: got shape",
    ),
    ({"kind": "packed", "bits": "mask", "columns": 2**50}, "mask: "),
    ("band", 'description: needs "kind"'),
    ([], 'description: needs "kind"'),
]


FIELDS: list[tuple[tuple[Any, ...], Any, str]] = [
    (("layers",), [], "layers: got none"),
    (("layers",), None, "layers: got None; needs a list"),
    (("layers", 1, "name"), "layers.0", "layers: 1, layers.0 is there twice"),
    (("layers", 1, "number"), 0, "layers: 0, layers.1 is there twice"),
    (("layers", 1, "number"), -1, "number: got -1"),
    (("layers", 1, "queries"), [0, 2**60], "lse: got shape"),
    (("layers", 1, "queries"), [70, 0], "queries: got"),
    (("layers", 1, "queries"), [1, 2, 3], "queries: got"),
    (("layers", 1, "keys"), [0, 2**60], "received: got shape"),
    (("layers", 1, "heads"), [0, 3, 5], "lse: got shape"),
    (("layers", 1, "heads"), ["a", "b"], "heads: got 'a'"),
    (("layers", 1, "sequence"), "__import__('os')", "sequence: got"),
    (("layers", 1, "cross"), 1, "cross: got 1; needs true or false"),
    (("layers", 1, "observation"), {}, 'needs "lse"'),
    (("layers", 1, "observation", "lse"), "token_ids", "lse: got I64"),
    (("layers", 1, "observation", "peak"), ["layers.0.lse"], "peak: got 1 tensors"),
    (("layers", 1, "observation", "__class__"), "x", "which this regard does not know"),
    (("layers", 1, "weights", "scale"), 1e308, "scale: got 1e[+]308"),
    (("layers", 1, "weights", "scale"), True, "scale: got True"),
    (("layers", 1, "weights", "softcap"), -2.0, "softcap: needs a positive"),
    (("layers", 1, "weights", "query"), "layers.1.lse", "query"),
    (("layers", 1, "weights", "lse"), "layers.1.map", "lse: got shape"),
    (("layers", 1, "weights", "sinks"), "layers.1.map", "sinks: got shape"),
    (("layers", 1, "weights", "bias", "table"), "layers.1.map", "relative: needs at least 4"),
    (("layers", 1, "weights", "bias", "max_distance"), 1, "max_distance must exceed"),
    (("layers", 1, "weights", "bias", "kind"), "exec", "does not know"),
    (("layers", 1, "weights", "bias", "bidirectional"), "no", "bidirectional: got 'no'"),
    (("layers", 1, "weights", "score"), {"kind": "exec"}, "score: got .*does not know"),
    (("layers", 1, "weights", "score"), {"kind": "additive"}, 'description: needs "vector"'),
    (
        ("layers", 1, "weights", "score"),
        {"kind": "additive", "vector": "layers.1.map"},
        "additive: got a vector of shape",
    ),
    (("start",), -5, "start: got -5"),
    (("whole",), "many", "whole: got 'many'"),
    (("model",), {"class": 3}, "model: got 3"),
    (("model",), None, "model: got None"),
    (("options",), [], "options: got"),
    (("passes",), {"input": [7, -1]}, "passes: got -1"),
    (("passes",), {"input": 7}, "passes: got 7; needs a list"),
    (("attention_mask",), "nothing", "attention_mask: names the tensor 'nothing'"),
    (("input", "ids"), "layers.1.lse", "token_ids: got F32"),
    (("input", "ids"), "layers.1.peak.2", "token_ids: got shape"),
    (("input", "pieces"), {}, "tokens: there is no text of number"),
    (("input", "words"), [], "words: got"),
    (("input", "words", 0, 0), ["a", 0, 2**50, False], "words: do not cut the 80 tokens"),
    (("input", "words", 0, 0), ["a", 4, 4, False], "words: do not cut the 80 tokens"),
    (("input", "words", 0, 0), ["a"], "word: got"),
    (("input", "words", 0, 0), [b"a".hex(), 0, 1, 0], "word: got 0; needs true or false"),
]
