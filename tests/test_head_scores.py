"""The scores of heads, against dense matrices; and the induction heads of a real model."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, inputs, matrices, tiny, watched

import regard

pytestmark = pytest.mark.once


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_are_means_of_dense_weights(family: str, padding: str) -> None:
    given = inputs(60, padding)
    trace, _ = watched(tiny(family), **given, observe=regard.Observe(sink=True))
    scores = trace.head_scores(1)
    ids, real = given["input_ids"][1].numpy(), given["attention_mask"][1].numpy() == 1
    i, j = np.indices((60, 60))
    first = int(real.argmax())
    same = (ids[:, None] == ids) & (j < i)
    follows = np.roll(same, 1, axis=1) & (j > 0) & (j <= i)
    follows[:, 0] = False
    for k, (whole, layer) in enumerate(zip(matrices(trace, 1), trace, strict=True)):
        visible = whole.max(axis=0) > 0
        rows = visible.sum(-1) > 1

        def mass(keys: Any, whole: Any = whole, visible: Any = visible, rows: Any = rows) -> Any:
            counted = rows & (visible & keys).any(-1)
            return (whole * keys).sum(-1)[:, counted].mean(-1)

        learned = np.asarray(layer.observation.sink[1], np.float64)
        sink = (whole[..., first] + learned)[:, rows].mean(-1)
        safe = np.where(whole > 0, whole, 1.0)
        entropy = -(whole * np.log(safe)).sum(-1)
        entropy -= learned * np.log(np.where(learned > 0, learned, 1.0))
        some = family == "gpt_oss"
        even = entropy / np.log(np.maximum(visible.sum(-1) + some, 2))
        total = np.maximum(whole.sum(-1), 1e-30)
        distance = ((whole * abs(i - j)).sum(-1) / total)[:, rows].mean(-1)
        expected = {
            "sink": sink,
            "previous": mass(j == i - 1),
            "duplicate": mass(same),
            "induction": mass(follows),
            "entropy": entropy[:, rows].mean(-1),
            "evenness": even[:, rows].mean(-1),
            "distance": distance,
        }
        for name, x in expected.items():
            np.testing.assert_allclose(
                getattr(scores, name)[k], x, rtol=1e-3, atol=1e-5, err_msg=name
            )


def test_induction_heads_of_a_real_model(smollm2: Any) -> None:
    model, tokenizer = smollm2
    scores = regard.induction(model, tokenizer, length=40)
    for name in ("induction", "previous"):
        print(name, scores.top(name, 3))
        assert scores.top(name)[0].score > 0.8
        assert scores.top(name, 3)[2].score > 0.6
    assert np.median(scores.induction) < 0.1
    best = scores.top("induction", 1)[0]
    again = regard.induction(model, tokenizer, length=40, seed=1)
    assert again.induction[best.layer, best.head] > 0.8


def test_the_matching_diagonal() -> None:
    """On tokens read twice, induction is the mean of one diagonal."""
    model, length = tiny("llama"), 30
    scores = regard.induction(model, length=length, seed=3, before=[1])
    drawn = np.random.default_rng(3).choice(97, length, replace=False).tolist()
    trace, _ = watched(model, input_ids=torch.tensor([[1, *drawn, *drawn]]))
    if 1 in drawn:
        pytest.skip("the token before is among those drawn")
    for k, whole in enumerate(matrices(trace)):
        rows = np.arange(length + 1, 2 * length + 1)
        diagonal = whole[:, rows, rows - length + 1].mean(-1)
        np.testing.assert_allclose(scores.induction[k], diagonal, rtol=1e-4)


def test_refusals() -> None:
    model = tiny("llama")
    with pytest.raises(regard.OptionError, match="induction: got 1 of 97 tokens; needs 2"):
        regard.induction(model, length=1)
    with pytest.raises(regard.ModelError, match="the model tells no vocabulary"):
        regard.induction(torch.nn.Linear(2, 2))
    trace, _ = watched(model, **inputs(9))
    with pytest.raises(regard.OptionError, match="top: got 'great'; needs one of sink, prev"):
        trace.head_scores().top("great")
    for count in (0, -1):
        with pytest.raises(regard.OptionError, match=f"top: got {count}; needs a number of heads"):
            trace.head_scores().top("sink", count)
    assert "sink, previous" in repr(trace.head_scores())
