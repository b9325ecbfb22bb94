"""The numbers of a look, against the same numbers from the dense matrix."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from looks import CAUSAL, SIZES, dense, make_look, per_word, run

import regard
from regard._watch import Word, find
from regard._weights import Weights
from regard.draw import page
from regard.draw.layer import Layer
from regard.draw.look import Look
from regard.draw.numbers import numbers
from regard.draw.overview import Overview
from regard.draw.run import last_word, prepare, telling_word

pytestmark = pytest.mark.once

TROPHY = "The trophy would not fit in the suitcase because it was too large."
CASES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"mask": CAUSAL},
    "specials": {"special": (0, 7)},
    "first word of two tokens": {"sizes": (2, *SIZES[1:]), "mask": CAUSAL},
    "learned sinks": {"mask": CAUSAL, "sinks": True, "special": (0,)},
    "window": {"mask": regard.window(3, 3)},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": np.linspace(-1, 1, 144, dtype=np.float32).reshape(12, 12)},
}


def without_sinks(look: Look, weights: np.ndarray) -> np.ndarray:
    """The mean matrix of words without the first token and the special ones, rows summing to 1."""
    mean = weights.mean(axis=0)
    mean[:, 0] = 0.0
    for word in look.words:
        if word.special:
            mean[:, word.start : word.stop] = 0.0
    words = per_word(look, mean[None])[0]
    rest = words.sum(axis=-1, keepdims=True)
    return np.divide(words, rest, out=np.zeros_like(words), where=rest > 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_weights_in_both_directions(case: str) -> None:
    look = make_look(**CASES[case])
    expected = per_word(look, dense(look)).mean(axis=0)
    for index in range(len(look.words)):
        gaze = look.gaze(index)
        np.testing.assert_allclose(gaze.looks_at().weight, expected[index], atol=1e-6)
        np.testing.assert_allclose(gaze.looked_at_by().weight, expected[:, index], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_shares_are_the_matrix_without_sinks(case: str) -> None:
    look = make_look(**CASES[case])
    expected = without_sinks(look, dense(look))
    for index, word in enumerate(look.words):
        gaze = look.gaze(index)
        np.testing.assert_allclose(gaze.looks_at().share, expected[index], atol=1e-5)
        back = gaze.looked_at_by()
        if word.special or word.stop == 1:
            assert back.without == frozenset()  # the question is about what is left out elsewhere
            continue
        asked = [not other.special for other in look.words]
        np.testing.assert_allclose(back.share[asked], expected[asked, index], atol=1e-5)
        assert not back.share[~np.array(asked)].any()


@pytest.mark.parametrize("case", CASES)
def test_what_was_left_out(case: str) -> None:
    look = make_look(**CASES[case])
    weights = dense(look)
    for index, word in enumerate(look.words):
        rows = weights[:, word.start : word.stop].mean(axis=(0, 1))
        special = sum(rows[w.start : w.stop].sum() for w in look.words if w.special and w.start)
        out = look.gaze(index).left_out
        np.testing.assert_allclose(
            (out.first, out.special, out.learned), (rows[0], special, 1 - rows.sum()), atol=1e-5
        )


def test_nothing_left_out() -> None:
    look = make_look(special=(0, 7))
    gaze = look.gaze(3)
    for seen in (gaze.looks_at(frozenset()), gaze.looked_at_by(frozenset())):
        np.testing.assert_allclose(seen.share, seen.weight, atol=1e-6)
        assert not seen.absent.any()
    assert gaze.looks_at(frozenset({"first"})).absent.tolist() == [True] + [False] * 7
    assert gaze.looks_at(frozenset({"special"})).absent.tolist() == [False] * 7 + [True]


def test_words_that_cannot_be_seen() -> None:
    gaze = make_look(mask=CAUSAL).gaze(3)
    assert gaze.looks_at().unseen.tolist() == [False] * 4 + [True] * 4
    assert gaze.looked_at_by().unseen.tolist() == [True] * 3 + [False] * 5
    away = make_look(mask=regard.window(1, 1)).gaze(4).looks_at().unseen
    assert away.tolist() == [True, True, True, False, False, False, True, True]
    barred = np.zeros((12, 12), np.float32)
    barred[:, 1:3] = -np.inf
    assert make_look(bias=barred).gaze(6).looks_at().unseen.tolist() == [i == 1 for i in range(8)]


def test_causal() -> None:
    assert make_look(mask=CAUSAL).causal
    assert make_look(mask=CAUSAL & regard.window(2)).causal
    assert not make_look().causal
    assert not make_look(mask=regard.prefix(3)).causal


def test_the_first_word_of_a_causal_model_sees_only_the_sink() -> None:
    seen = make_look(mask=CAUSAL).gaze(0).looks_at()
    assert not seen.share.any()
    np.testing.assert_allclose(seen.weight, [1] + [0] * 7)


def test_strongest_heads() -> None:
    look = make_look(special=(0,))
    weights = per_word(look, dense(look))
    gaze = look.gaze(3)
    found = gaze.strongest(5, word=6)
    order = np.argsort(-weights[:, 3, 6])[:5]
    assert [(f.layer, f.head) for f in found] == [(h // 4, h % 4) for h in order]
    np.testing.assert_allclose([f.weight for f in found], weights[order, 3, 6], atol=1e-6)
    back = gaze.strongest(1, word=6, away=False)[0]
    assert back.weight == pytest.approx(weights[:, 6, 3].max(), abs=1e-6)
    best = gaze.strongest(1)[0]
    assert best.word != 0
    assert best.weight == pytest.approx(weights[:, 3, 1:].max(), abs=1e-6)


def test_only_some_layers_and_heads() -> None:
    look = make_look()
    weights = per_word(look, dense(look))
    two = look.only([2, 0])
    assert ([layer.number for layer in two.layers], two.heads) == ([0, 2], 8)
    np.testing.assert_allclose(
        two.gaze(3).looks_at().weight, weights[[0, 1, 2, 3, 8, 9, 10, 11], 3].mean(0), atol=1e-6
    )
    one = look.only([1], head=2)
    assert one.layers[0].heads == (2,)
    np.testing.assert_allclose(one.gaze(3).looks_at().weight, weights[6, 3], atol=1e-6)
    assert one.gaze(3).strongest(1, word=5)[0][:2] == (1, 2)


@pytest.mark.parametrize(
    ("layers", "head", "message"),
    [
        ([3], None, "layer: got 3; of made-up this run holds layers 0 to 2"),
        ([-1], None, "layer: got -1; of made-up this run holds layers 0 to 2"),
        ([1], 4, "head: got 4; of layer 1 of made-up this run holds heads 0 to 3"),
    ],
)
def test_layers_and_heads_that_are_not_there(
    layers: list[int], head: int | None, message: str
) -> None:
    with pytest.raises(regard.OptionError, match=f"^{message}$"):
        make_look().only(layers, head)


def test_layers_that_a_run_does_not_hold() -> None:
    part = make_look(layers=6).only([3, 5])
    with pytest.raises(regard.OptionError, match=r"of made-up this run holds layers 3 and 5$"):
        part.only([0])
    with pytest.raises(regard.OptionError, match=r"of layer 3 of made-up this run holds head 1$"):
        part.only([3], head=1).only([3], head=0)


def overflown() -> Look:
    """A look of whose layers the second gives NaN in its last rows."""
    look = make_look(mask=CAUSAL)
    layer = look.layers[1]
    query = np.array(layer.weights.problem.query)
    query[2, 9:] = np.inf
    weights = Weights(replace(layer.weights.problem, query=query))
    return replace(look, layers=(look.layers[0], replace(layer, weights=weights), look.layers[2]))


@pytest.mark.parametrize(
    "show",
    [
        lambda look, _: look.gaze(2),
        lambda look, _: Overview.of(look),
        lambda look, path: page.write(look, path, word=2, layers=[0]),
        lambda look, path: page.write(look, path, word=2, budget=0),
    ],
    ids=["word", "overview", "page", "part of a page"],
)
def test_weights_that_are_nan_are_shown_nowhere(show: Any, tmp_path: Path) -> None:
    message = r"^model: weights of layer 1 are NaN, as scores there are NaN or infinite; needs"
    with pytest.raises(regard.ModelError, match=message):
        show(overflown(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    assert overflown().only([0, 2]).gaze(2).looks_at().share.any()


def test_a_word_that_is_not_there() -> None:
    with pytest.raises(regard.TextError, match=r"^word: got 8; the text has words 0 to 7$"):
        make_look().gaze(8)


def informed(matrix: np.ndarray, visible: np.ndarray, aside: list[int]) -> float:
    """What `Look.information` says of one layer, (heads, L, L), in plain loops."""
    told = []
    for head in matrix:
        for row, seen in zip(head, visible, strict=True):
            keys = [j for j in range(len(row)) if seen[j] and j not in aside]
            mass = row[keys].sum()
            shares = row[keys] / mass if mass > 1e-6 else np.zeros(len(keys))
            entropy = -sum(p * np.log2(p) for p in shares if p > 0)
            told.append(mass * (np.log2(len(keys)) - entropy) if mass > 1e-6 else 0.0)
    return float(np.mean(told))


@pytest.mark.parametrize("case", ["bidirectional", "causal", "specials", "window", "learned sinks"])
def test_information(case: str) -> None:
    look = make_look(**CASES[case])
    mask = {"causal": np.tri(12), "learned sinks": np.tri(12), "window": window(12, 3)}
    visible = mask.get(case, np.ones((12, 12))) > 0
    aside = [0, 11] if case == "specials" else [0]
    matrices = np.split(dense(look), 3)
    expected = [informed(matrix, visible, aside) for matrix in matrices]
    np.testing.assert_allclose(look.information(), expected, atol=1e-5)


def window(size: int, width: int) -> np.ndarray:
    i = np.arange(size)
    return (np.abs(i[:, None] - i) <= width).astype(float)


def test_information_of_even_and_of_sharp_weights() -> None:
    even, sharp = make_look(spread=0.0), make_look(spread=30.0)
    np.testing.assert_allclose(even.information(), 0.0, atol=1e-6)
    assert (sharp.information() > 2.0).all()


def test_gaps_are_what_stands_between_words() -> None:
    words = (
        Word("[CLS]", 0, 1, True),
        Word("Don't", 1, 3),
        Word("stop", 3, 4),
        Word(".", 4, 5),
        Word("\n", 5, 6),
        Word("Go", 6, 7),
        Word("[SEP]", 7, 8, True),
    )
    look = Look("made-up", " Don't  stop.\n\tGo", ("",) * 8, words, ())
    assert look.gaps == ("", " ", "  ", "", "", "\t", " ")


def test_a_layer_that_is_not_about_the_text_is_refused(minilm: Any) -> None:
    model, tokenizer = minilm
    inputs = tokenizer("a b", return_tensors="pt")
    with regard.watch(model, tokenizer=tokenizer) as trace:
        model(**inputs)
    first = trace[0]
    trace.token_ids = trace.token_ids[:, :2]
    with pytest.raises(regard.ModelError, match=r"attends from 4 to 4 positions; needs self-att"):
        Look.of(trace, model="minilm", text="a")
    assert first.weights.shape == (1, 12, 4, 4)


def mean_of(look: Look, word: str) -> dict[str, float]:
    weight = look.gaze(find(look.words, word)).looks_at().weight
    return {w.text: round(float(x), 3) for w, x in zip(look.words, weight, strict=True)}


def test_minilm_and_the_trophy(minilm: Any) -> None:
    large = mean_of(run(*minilm, TROPHY, name="minilm"), "it")
    small = mean_of(run(*minilm, TROPHY.replace("large", "small"), name="minilm"), "it")
    assert (large["trophy"], large["suitcase"]) == (0.087, 0.080)
    assert (small["trophy"], small["suitcase"]) == (0.088, 0.079)


def test_smollm2_cannot_tell_large_from_small_at_it(smollm2: Any) -> None:
    look = run(*smollm2, TROPHY, name="smollm2")
    other = run(*smollm2, TROPHY.replace("large", "small"), name="smollm2")
    it = find(look.words, "it")
    seen, same = look.gaze(it).looks_at(), other.gaze(it).looks_at()
    np.testing.assert_allclose(seen.weight, same.weight, atol=1e-6)
    hidden = [w.text for w, u in zip(look.words, seen.unseen, strict=True) if u]
    assert (look.causal, hidden) == (True, ["was", "too", "large", "."])
    assert look.gaze(it).left_out.first == pytest.approx(0.452, abs=2e-3)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text(text: str, minilm: Any) -> None:
    with pytest.raises(regard.TextError, match=r"^text: is empty; needs at least one word$"):
        prepare(*minilm, text, name="minilm")


def test_text_beyond_the_context(minilm: Any) -> None:
    with pytest.raises(regard.TextError, match=r"^text: has 602 tokens; minilm takes at most 512$"):
        prepare(*minilm, "word " * 600, name="minilm")


def test_the_last_word() -> None:
    def words(*texts: str) -> list[Word]:
        return [Word(t, i, i + 1, t.startswith("[")) for i, t in enumerate(texts)]

    assert last_word(words("[CLS]", "too", "large", ".", "[SEP]")) == 2
    assert last_word(words("[CLS]", "!", "?", "[SEP]")) == 2
    assert last_word(words("[CLS]", "[SEP]")) == 1


def test_the_first_word_that_was_added_tells_more() -> None:
    look = make_look((1,) * 6, "Where is it ? In Paris")
    assert telling_word(look) == 5
    assert telling_word(replace(look, given=3)) == 4
    assert telling_word(replace(look, given=4)) == 4
    assert telling_word(replace(look, given=5)) == 5


def test_plain_numbers() -> None:
    look = make_look(mask=CAUSAL, special=(0,))
    gaze = look.gaze(5)
    told = numbers(gaze)
    assert told["word"] == 5
    assert told["words"][3] == {"text": "words", "start": 4, "stop": 7, "special": False}
    assert [layer["layer"] for layer in told["layers"]] == [0, 1, 2]
    row = told["looks_at"][3]
    assert row["weight"] == pytest.approx(float(gaze.looks_at().weight[3]))
    assert (row["visible"], row["left_out"]) == (True, False)
    assert (told["looks_at"][0]["left_out"], told["looks_at"][7]["visible"]) == (True, False)
    assert sum(row["share"] for row in told["looks_at"]) == pytest.approx(1.0)
    assert told["strongest"][0] == gaze.strongest(1)[0]._asdict()


def test_layers_of_other_heads_are_taken_together() -> None:
    look = make_look()
    first = look.layers[0]
    mixed = Look(
        look.model,
        look.text,
        look.tokens,
        look.words,
        (Layer(0, (1,), first.weights[1:2]), look.layers[1]),
    )
    expected = per_word(look, dense(look))[[1, 4, 5, 6, 7], 2].mean(axis=0)
    np.testing.assert_allclose(mixed.gaze(2).looks_at().weight, expected, atol=1e-6)
