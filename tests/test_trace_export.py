"""Traces as arrays, JSON and tables."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CACHE, inputs, tiny, watched

import regard
from regard._observation import Observe
from regard._watch import export

pytestmark = pytest.mark.once

pandas = pytest.importorskip("pandas")
arrow = pytest.importorskip("pyarrow")

OBSERVED = Observe(entropy=True, peak=True, top=2, received="all", sink=True, map=(2, 3))
TEXTS = ["The trophy didn't fit.", "Yes."]


@pytest.fixture(scope="module")
def seen(minilm: Any) -> regard.Trace:
    """Two texts, the second padded, with words."""
    model, tokenizer = minilm
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return watched(model, observe=OBSERVED, tokenizer=tokenizer, **given)[0]


def test_numpy(seen: regard.Trace) -> None:
    found = seen.to_numpy()
    stream = io.BytesIO()
    np.savez(stream, **found)  # type: ignore[arg-type]
    stream.seek(0)
    read = np.load(stream)  # which refuses what only pickle could hold
    assert np.array_equal(read["token_ids"], seen.token_ids.numpy())
    layer = seen[4]
    peak: Any = layer.observation.peak
    assert np.array_equal(read["layers.4.peak.key"], peak.key.numpy())
    assert np.array_equal(read["layers.4.map"], np.asarray(layer.observation.map))
    assert read["layers.4.heads"].tolist() == list(layer.heads)
    assert read["layers.4.queries"].tolist() == list(layer.queries)


def test_json(seen: regard.Trace, tmp_path: Path) -> None:
    text = seen.to_json()
    found = json.loads(text or "", parse_constant=pytest.fail)
    assert seen.to_json(tmp_path / "x.json") is None
    assert (tmp_path / "x.json").read_text() == text
    assert found["model"]["class"] == "BertModel"
    assert found["input"]["tokens"] == [seen.tokens(0), seen.tokens(1)]
    assert found["input"]["words"][0][2] == seen.words(0)[2]._asdict()
    told = [{"text": x.text, "start": x.start, "stop": x.stop} for x in seen.sentences(0)]
    assert found["input"]["sentences"][0] == told
    assert len(told) > 2
    layer = found["layers"][3]
    for name in ("entropy", "map", "received", "lse"):
        exact = getattr(seen[3].observation, name).numpy()
        numbers = np.array(layer[name], np.float32)  # null becomes NaN
        assert np.array_equal(numbers, np.where(np.isfinite(exact), exact, np.nan), equal_nan=True)
    assert layer["lse"][1][0][-1] is None  # of a padded query
    assert np.array_equal(layer["top.keys"], seen[3].observation.top.keys)  # type: ignore


def test_json_of_arrays_without_numbers() -> None:
    for shape in [(0,), (2, 0), (0, 3), (2, 0, 3), (2, 3, 0)]:
        plain = export._plain(np.zeros(shape, np.float32))
        assert plain == np.zeros(shape, np.float32).tolist(), shape


def test_a_row_for_every_query(seen: regard.Trace) -> None:
    table = seen.to_pandas()
    L = seen.token_ids.shape[1]
    assert len(table) == 6 * 12 * 2 * L
    assert list(table.columns) == [
        "layer",
        "name",
        "entry",
        "head",
        "query",
        "token",
        "word",
        "word_number",
        "padded",
        "lse",
        "entropy",
        "sink",
        "peak_weight",
        "peak_key",
        "peak_token",
        "peak_word",
        "peak_word_number",
        "received",
    ]
    row = table[table.eval("layer == 2 and entry == 0 and head == 5 and query == 3")]
    assert len(row) == 1
    row = row.iloc[0]
    observation: Any = seen[2].observation
    assert row["name"] == seen[2].name
    assert row["entropy"] == observation.entropy[0, 5, 3]
    assert row["received"] == observation.received[0, 5, 3]
    assert row["peak_key"] == observation.peak.key[0, 5, 3]
    tokens, words = seen.tokens(0), seen.words(0)
    assert row["token"] == tokens[3]
    assert row["peak_token"] == tokens[row["peak_key"]]
    word = words[row["word_number"]]
    assert word.start <= 3 < word.stop
    assert row["word"] == word.text
    padded = table[table["entry"] == 1].groupby("query")["padded"].all()
    assert padded.tolist() == (seen.attention_mask[1] == 0).tolist()
    assert (table[table["padded"]]["peak_key"] == -1).all()
    assert table[table["padded"]]["peak_token"].isna().all()


def test_a_row_for_every_edge(seen: regard.Trace) -> None:
    table = seen.to_pandas(top=3)  # one more than was gathered
    assert list(table.columns) == [
        "layer",
        "name",
        "entry",
        "head",
        "query",
        "token",
        "word",
        "word_number",
        "rank",
        "key",
        "weight",
        "key_token",
        "key_word",
        "key_word_number",
    ]
    rows = table[table.eval("layer == 1 and entry == 0 and head == 7 and query == 2")]
    assert rows["rank"].tolist() == [1, 2, 3]
    weights = seen[1].weights[0, 7, 2, rows["key"].tolist()[0] : rows["key"].tolist()[0] + 1]
    assert float(weights) == pytest.approx(rows["weight"].iloc[0], rel=1e-6)
    assert rows["key_token"].tolist() == [seen.tokens(0)[key] for key in rows["key"]]
    assert (table["key"] >= 0).all()
    held = seen.to_pandas(top=2)
    assert held["weight"].tolist() == table[table["rank"] < 3]["weight"].tolist()


@pytest.mark.parametrize("by", ["word", "token"])
def test_a_row_for_every_word_of_every_head(seen: regard.Trace, by: str) -> None:
    word = seen.at(2).without_sink()
    table = word.to_pandas([1, 3], [0, 7], by=by)
    assert list(table.columns) == ["layer", "head", "number", by, "gives", "gets"]
    rows = table[table.eval("layer == 3 and head == 7")]
    names = [x.text for x in seen.words(0)] if by == "word" else seen.tokens(0)
    assert rows[by].tolist() == names
    assert rows["number"].tolist() == list(range(len(names)))
    for ask in ("gives", "gets"):
        assert rows[ask].tolist() == getattr(word, ask)(3, 7, by=by).ravel().tolist()
    assert len(table) == 4 * len(names)


def test_arrow_holds_the_same(seen: regard.Trace) -> None:
    for top in (None, 2):
        table, frame = seen.to_arrow(top=top), seen.to_pandas(top=top)
        assert table.column_names == list(frame.columns)
        for name in table.column_names:
            ours, theirs = table[name].to_pylist(), frame[name].tolist()
            assert [x for x in ours if x == x and x is not None] == [
                x for x in theirs if x == x and x is not None
            ], name
        assert table.schema.field("token").type.value_type == arrow.string()


def test_an_opened_trace_gives_the_same(seen: regard.Trace, tmp_path: Path) -> None:
    seen.save(tmp_path / "x")
    opened = regard.Trace.load(tmp_path / "x")
    assert opened.to_json() == seen.to_json()
    pandas.testing.assert_frame_equal(opened.to_pandas(), seen.to_pandas())
    pandas.testing.assert_frame_equal(opened.to_pandas(top=2), seen.to_pandas(top=2))


def test_positions_after_a_filled_cache() -> None:
    model = tiny("llama")
    given = inputs(12)["input_ids"]
    with torch.no_grad():
        cache = getattr(model(given[:, :5]), CACHE)
        with regard.watch(model, observe=Observe(peak=True, received="all")) as trace:
            model(given[:, 5:], **{CACHE: cache})
    table = trace.to_pandas()
    assert sorted(set(table["query"])) == list(range(5, 12))
    assert (table["peak_key"] <= table["query"]).all()
    assert table["token"].isna().all()  # there was no tokenizer
    assert table["received"].isna().all()  # keys are more than queries


def test_keys_across_are_those_of_the_encoder() -> None:
    import transformers as hf

    options: Any = {"d_model": 32, "vocab_size": 40, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = hf.BartModel(hf.BartConfig(**options, **heads, encoder_ffn_dim=8)).eval()
    with regard.watch(model, observe=Observe(peak=True)) as trace, torch.no_grad():
        model(torch.arange(5, 11)[None], decoder_input_ids=torch.arange(20, 24)[None])

    class Tokenizer:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"t{i}" for i in ids]

    trace._tokenizer = Tokenizer()
    trace.words = lambda entry, decoder=False: []  # type: ignore[method-assign, assignment, misc]
    table = trace.to_pandas(top=2)
    across = next(layer for layer in trace if layer.cross)
    rows = table[table["layer"] == across.number]
    assert set(rows["token"]) == {"t20", "t21", "t22", "t23"}
    assert rows["key_token"].tolist() == [f"t{5 + key}" for key in rows["key"]]
    assert rows["word_number"].tolist() == [-1] * len(rows)


def test_what_cannot_be(seen: regard.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("to_numpy", "to_json", "to_pandas", "to_arrow"):
        with pytest.raises(regard.ModelError, match="trace: is empty"):
            getattr(regard.Trace(), call)()
    for top in (0, 65, True):
        with pytest.raises(regard.OptionError, match="top: needs 1 to 64 keys, got"):
            seen.to_pandas(top=top)
    model = tiny("llama")
    with regard.watch(model, keep="statistics") as trace:
        model(**inputs(5))
    assert "entropy" not in trace.to_pandas().columns
    with pytest.raises(regard.ModelError, match="kept statistics only"):
        trace.to_pandas(top=2)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        regard.ModelError, match=r"to_pandas: needs pandas, .* pip install 'regard\[export\]'"
    ):
        seen.to_pandas()
