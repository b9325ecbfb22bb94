"""A trace in other forms: arrays by name, JSON, and tables for pandas and Arrow."""

import importlib
import json
import math
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from regard._arrays import float64, is_torch
from regard._errors import ModelError, OptionError, TextError
from regard._observation import MAX_TOP, Observation
from regard._watch.layer import Layer
from regard._watch.sentences import sentences
from regard._watch.trace import Trace
from regard._watch.words import Word

OF_TOKENS = ("token_ids", "decoder_token_ids", "attention_mask", "decoder_attention_mask")
PER_QUERY = ("lse", "entropy", "sink")


class Coded(NamedTuple):
    """A column of texts, of which few are different: numbers of them, -1 where there is none."""

    codes: np.ndarray
    texts: list[str]


Column = np.ndarray | Coded


def to_numpy(trace: Trace) -> dict[str, np.ndarray]:
    """`Trace.to_numpy`."""
    trace.check_filled()
    found: dict[str, np.ndarray] = {}
    for name in OF_TOKENS:
        if (x := getattr(trace, name)) is not None:
            found[name] = _array(x)
    for layer in trace:
        at = f"layers.{layer.number}"
        found[f"{at}.heads"] = np.array(layer.heads)
        for side in ("queries", "keys"):
            positions = getattr(layer, side)
            found[f"{at}.{side}"] = np.arange(positions.start, positions.stop)
        found |= {f"{at}.{name}": x for name, x in _statistics(layer.observation).items()}
    return found


def to_json(trace: Trace) -> str:
    """`Trace.to_json`."""
    trace.check_filled()
    layers = [
        {
            **layer.described(),
            **{name: _plain(x) for name, x in _statistics(layer.observation).items()},
        }
        for layer in trace
    ]
    told = {
        "model": trace.model,
        "options": trace.options,
        "start": trace.start,
        "input": _sequence(trace, decoder=False),
        "decoder": _sequence(trace, decoder=True),
        "layers": layers,
    }
    return json.dumps(told, allow_nan=False)


def to_pandas(trace: Trace, top: int | None) -> Any:
    """`Trace.to_pandas`."""
    pandas = library("pandas", "to_pandas")
    return pandas.DataFrame(
        {
            name: pandas.Categorical.from_codes(column.codes, column.texts)
            if isinstance(column, Coded)
            else column
            for name, column in _table(trace, top).items()
        }
    )


def to_arrow(trace: Trace, top: int | None) -> Any:
    """`Trace.to_arrow`."""
    arrow = library("pyarrow", "to_arrow")

    def column(x: Column) -> Any:
        if not isinstance(x, Coded):
            return arrow.array(x)
        codes = arrow.array(x.codes, mask=x.codes < 0)
        return arrow.DictionaryArray.from_arrays(codes, arrow.array(x.texts, arrow.string()))

    return arrow.table({name: column(x) for name, x in _table(trace, top).items()})


def library(name: str, method: str) -> Any:
    """Raises ModelError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModelError(
            f"{method}: needs {name}, which is not installed: pip install 'regard[export]'"
        ) from None


def _array(x: Any) -> np.ndarray:
    """As NumPy holds it: bfloat16 and float16 do not occur among statistics."""
    found: np.ndarray = x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)
    return found


def _statistics(observation: Observation) -> dict[str, np.ndarray]:
    """Every array of an observation by name; the two of a pair as peak.weight and peak.key."""
    found: dict[str, np.ndarray] = {}
    for field in fields(observation):
        value: Any = getattr(observation, field.name)
        if isinstance(value, tuple):
            named: Any = value
            for name, x in named._asdict().items():
                found[f"{field.name}.{name}"] = _array(x)
        elif value is not None:
            found[field.name] = _array(value)
    return found


# JSON


def _plain(x: np.ndarray) -> Any:
    """Lists of numbers, each with as many digits as tell it from its neighbours."""
    if x.dtype.kind != "f":
        return x.tolist()
    if x.ndim > 1:
        return [_plain(part) for part in x]
    digits = 9 if x.dtype == np.float32 else 17
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in x.tolist()]


def _sequence(trace: Trace, *, decoder: bool) -> Any:
    ids = trace.decoder_token_ids if decoder else trace.token_ids
    if ids is None:
        return None
    told: dict[str, Any] = {"token_ids": _array(ids).tolist()}
    entries = [(_tokens(trace, n, decoder), _words(trace, n, decoder)) for n in range(len(ids))]
    if all(tokens is not None and words is not None for tokens, words in entries):
        told["tokens"] = [tokens for tokens, _ in entries]
        told["words"] = [[word._asdict() for word in words or ()] for _, words in entries]
        told["sentences"] = [
            [{"text": x.text, "start": x.start, "stop": x.stop} for x in sentences(words or ())]
            for _, words in entries
        ]
    return told


def _tokens(trace: Trace, entry: int, decoder: bool) -> list[str] | None:
    try:
        return trace.tokens(entry, decoder=decoder)
    except TextError:
        return None


def _words(trace: Trace, entry: int, decoder: bool) -> list[Word] | None:
    try:
        return trace.words(entry, decoder=decoder)
    except TextError:
        return None


# Tables


class Names:
    """What stands at the positions of a trace.

    The token, the word and its number, for every position of a sequence of the batch.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.texts: dict[str, int] = {}
        self._known: dict[tuple[str | None, int], tuple[int, np.ndarray]] = {}

    def at(self, sequence: str | None, entry: int, positions: np.ndarray) -> np.ndarray:
        """(3, *positions.shape): codes of tokens and of words, and numbers of words.

        -1 where nothing is known of a position, or it is itself -1.
        """
        key = (sequence, entry)
        if key not in self._known:
            self._known[key] = self._of(sequence, entry)
        start, told = self._known[key]
        at = positions - start
        there = (positions >= 0) & (at >= 0) & (at < told.shape[1])
        return np.where(there, told[:, np.where(there, at, 0)], -1)

    def _of(self, sequence: str | None, entry: int) -> tuple[int, np.ndarray]:
        decoder = sequence == "decoder"
        ids = self.trace.decoder_token_ids if decoder else self.trace.token_ids
        count = 0 if sequence not in ("input", "decoder") or ids is None else ids.shape[-1]
        told = np.full((3, max(count, 1)), -1)  # one that says nothing where there is none
        tokens = _tokens(self.trace, entry, decoder) if count else None
        told[0, :count] = -1 if tokens is None else [self._code(token) for token in tokens]
        words = _words(self.trace, entry, decoder) if count else None
        for number, word in enumerate(words or ()):
            told[1:, word.start : word.stop] = [[self._code(word.text)], [number]]
        return 0 if decoder else self.trace.start, told

    def _code(self, text: str) -> int:
        shown = text.encode("utf-8", "replace").decode()
        return self.texts.setdefault(shown, len(self.texts))


def _table(trace: Trace, top: int | None) -> dict[str, Column]:
    """Columns of one length: a row for each query, or with `top` one for each of its keys."""
    trace.check_filled()
    if top is not None and (isinstance(top, bool) or not 1 <= top <= MAX_TOP):
        raise OptionError(f"top: needs 1 to {MAX_TOP} keys, got {top!r}")
    names = Names(trace)
    layers = [
        (layer, part)
        for layer in trace
        for part in [_edges(layer, names, top) if top else _queries(layer, names)]
    ]
    columns: dict[str, Column] = {
        name: np.concatenate([part[name] for _, part in layers]) for name in layers[0][1]
    }
    texts = list(names.texts)
    for name, column in columns.items():
        if isinstance(column, np.ndarray) and name.endswith(("token", "word")):
            columns[name] = Coded(column.astype(np.int32), texts)
    lengths = [len(part["query"]) for _, part in layers]
    codes = np.repeat(np.arange(len(layers), dtype=np.int32), lengths)
    named = Coded(codes, [layer.name for layer, _ in layers])
    return {"layer": columns.pop("layer"), "name": named, **columns}


def _grid(layer: Layer, batch: int) -> dict[str, np.ndarray]:
    """The entry of the batch, head and position of every query, (batch, heads, L) each."""
    entries, heads = np.arange(batch), np.array(layer.heads)
    queries = np.arange(layer.queries.start, layer.queries.stop)
    shape = (batch, len(heads), len(queries))
    return {
        "layer": np.broadcast_to(np.array(layer.number), shape),
        "entry": np.broadcast_to(entries[:, None, None], shape),
        "head": np.broadcast_to(heads[:, None], shape),
        "query": np.broadcast_to(queries, shape),
    }


def _queries(layer: Layer, names: Names) -> dict[str, np.ndarray]:
    statistics = _statistics(layer.observation)
    batch, _, L = statistics["lse"].shape
    columns = _grid(layer, batch)
    columns |= _told(columns["query"], layer.sequence, names, "")
    columns["padded"] = _padded(layer, names.trace, columns["query"])
    columns |= {name: statistics[name] for name in PER_QUERY if name in statistics}
    if "peak.key" in statistics:
        keys = _positions(statistics["peak.key"], layer)
        columns |= {"peak_weight": statistics["peak.weight"], "peak_key": keys}
        columns |= _told(keys, _of_keys(layer), names, "peak_")
    if "received" in statistics:
        # A key's, in the row of the query at its position.
        own = not layer.cross and layer.queries == layer.keys
        received = statistics["received"]
        columns["received"] = received if own else np.full((*received.shape[:2], L), np.nan)
    return {name: column.reshape(-1) for name, column in columns.items()}


def _edges(layer: Layer, names: Names, top: int) -> dict[str, np.ndarray]:
    k = min(top, len(layer.keys))
    held: Any = layer.observation.top
    found: Any = held if held is not None and held.keys.shape[-1] >= k else layer.weights.top(k)
    keys, weights = (_array(x)[..., :k] for x in (found.keys, found.weights))
    grid = _grid(layer, len(keys))
    columns = {name: np.broadcast_to(x[..., None], keys.shape) for name, x in grid.items()}
    columns |= _told(columns["query"], layer.sequence, names, "")
    columns["rank"] = np.broadcast_to(np.arange(1, k + 1), keys.shape)
    positions = _positions(keys, layer)
    columns |= {"key": positions, "weight": weights}
    columns |= _told(positions, _of_keys(layer), names, "key_")
    seen = keys >= 0
    return {name: column[seen] for name, column in columns.items()}


def _told(
    positions: np.ndarray, sequence: str | None, names: Names, prefix: str
) -> dict[str, np.ndarray]:
    parts = [names.at(sequence, entry, x) for entry, x in enumerate(positions)]
    told = np.stack(parts, 1) if parts else np.full((3, *positions.shape), -1)
    return {f"{prefix}{name}": told[n] for n, name in enumerate(("token", "word", "word_number"))}


def _positions(keys: np.ndarray, layer: Layer) -> np.ndarray:
    return np.where(keys < 0, -1, keys + layer.keys.start)


def _of_keys(layer: Layer) -> str | None:
    """Whose positions the keys are: a decoder that looks across looks at the input."""
    if not layer.cross:
        return layer.sequence
    return "input" if layer.sequence == "decoder" else None


def _padded(layer: Layer, trace: Trace, positions: np.ndarray) -> np.ndarray:
    masks = {"input": trace.attention_mask, "decoder": trace.decoder_attention_mask}
    mask = masks.get(layer.sequence)
    if mask is None or len(mask) != len(positions):
        return np.zeros(positions.shape, bool)
    real = float64(mask).astype(bool)
    at = np.minimum(positions, real.shape[1] - 1)
    shown = np.stack([row[x] for row, x in zip(real, at, strict=True)])
    padded: np.ndarray = ~shown & (positions < real.shape[1])
    return padded
