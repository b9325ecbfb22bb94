"""What a trace answers about words and heads, against dense matrices."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import biases, masks
from tiny_models import FAMILIES, inputs, matrices, scrambled, tiny, watched
from transformers import BartConfig, BartForConditionalGeneration

import regard
from regard import watch
from regard._watch import flow, means, reading
from regard.draw.look import Look

pytestmark = pytest.mark.once

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
TEXT = "The dog chased the ball. It was bouncing because the cat slept! Unbelievably, it stopped."


def read(packaged: Any, text: str = TEXT) -> regard.Trace:
    model, tokenizer = packaged
    given = tokenizer(text, return_tensors="pt")
    return watched(model, **given, tokenizer=tokenizer)[0]


@pytest.fixture(scope="module")
def causal(smollm2: Any) -> regard.Trace:
    return read(smollm2)


@pytest.fixture(scope="module")
def both_ways(minilm: Any) -> regard.Trace:
    return read(minilm)


@pytest.fixture(params=["causal", "both_ways"])
def trace(request: pytest.FixtureRequest) -> regard.Trace:
    found: regard.Trace = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def bart() -> regard.Trace:
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 64, "max_position_embeddings": 99}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 97}
    model = scrambled(BartForConditionalGeneration(BartConfig(**sizes, **heads)))
    ids = inputs(20)["input_ids"]
    return watched(model, input_ids=ids, decoder_input_ids=ids[:, :9])[0]


class TestAt:
    def test_gives_and_gets_are_sums_over_keys_and_means_over_rows(
        self, trace: regard.Trace
    ) -> None:
        words, whole = trace.words(), np.stack(matrices(trace))
        word = trace.at("unbelievably" if words[0].special else "Unbelievably")
        own = slice(word.tokens.start, word.tokens.stop)
        assert len(word.tokens) > 1
        assert word.word == words[word.index or 0]
        row = whole[:, :, own].mean(2)
        np.testing.assert_allclose(word.gives(by="token"), row, **CLOSE)
        by_word = np.stack([row[..., w.start : w.stop].sum(-1) for w in words], -1)
        np.testing.assert_allclose(word.gives(), by_word, **CLOSE)
        np.testing.assert_allclose(word.gives(mean="heads"), by_word.mean(1), **CLOSE)
        np.testing.assert_allclose(word.gives(mean="layers"), by_word.mean(0), **CLOSE)
        np.testing.assert_allclose(word.gives([2, 5], [1, 2]), by_word[[2, 5], 1:3], **CLOSE)
        column = whole[..., own].sum(-1)
        np.testing.assert_allclose(word.gets(by="token"), column, **CLOSE)
        by_word = np.stack([column[..., w.start : w.stop].mean(-1) for w in words], -1)
        np.testing.assert_allclose(word.gets(mean="all"), by_word.mean((0, 1)), **CLOSE)

    @pytest.mark.parametrize("name", ["ball", "it"])
    def test_without_sink_as_the_page(self, trace: regard.Trace, name: str) -> None:
        look = Look.of(trace, model="", text=TEXT)
        word = trace.at(name).without_sink()
        gaze = look.gaze(word.index or 0)
        page = (gaze.looks_at().share, gaze.looked_at_by().share)
        for mine, theirs in zip((word.gives(mean="all"), word.gets(mean="all")), page, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-6)
        assert word.gives(mean="all").sum() == pytest.approx(1.0)
        assert "without sink" in repr(word)

    def test_the_sink_itself_gets_all(self, causal: regard.Trace) -> None:
        first = causal.at(0)
        np.testing.assert_array_equal(first.gets(), first.without_sink().gets())

    def test_padding_before_the_first_token(self, smollm2: Any) -> None:
        model, tokenizer = smollm2
        texts = [TEXT, "The cat saw it."]
        given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        trace = watched(model, **given, tokenizer=tokenizer)[0]
        alone = read(smollm2, texts[1])
        pads = int((given["attention_mask"][1] == 0).sum())
        assert trace.positions(1).padding.sum() == pads
        for ask in ("gives", "gets"):
            padded = getattr(trace.at("it", 1).without_sink(), ask)(by="token", mean="all")
            plain = getattr(alone.at("it").without_sink(), ask)(by="token", mean="all")
            np.testing.assert_allclose(padded[pads:], plain, rtol=1e-3, atol=1e-5)
            assert not padded[:pads].any()
        scores = [trace.head_scores(1), alone.head_scores()]
        for name in ("sink", "previous", "entropy", "evenness", "distance"):
            np.testing.assert_allclose(*(getattr(s, name) for s in scores), rtol=2e-3, atol=1e-4)

    def test_encoder_and_decoder(self, bart: regard.Trace) -> None:
        cross = np.stack([a for a, x in zip(matrices(bart, 1), bart, strict=True) if x.cross])
        asked = bart.at(3, 1, decoder=True)
        np.testing.assert_allclose(asked.gives(cross=True), cross[:, :, 3], **CLOSE)
        assert asked.gives().shape == (2, 4, 9)
        np.testing.assert_allclose(bart.at(7, 1).gets(cross=True), cross[..., 7], **CLOSE)
        assert bart.at(7).gives(mean="all").shape == (20,)
        halves = bart.between(3, 2, 1, cross=True, mean="heads")
        expected = cross.reshape(2, 4, 3, 3, 2, 10).sum(-1).mean((1, 3))
        np.testing.assert_allclose(halves, expected, **CLOSE)
        with pytest.raises(regard.OptionError, match="this word is the input's own"):
            bart.at(7).gives(cross=True)

    def test_a_generated_run(self) -> None:
        model, given = tiny("llama"), inputs(12, "left")
        with watch(model) as trace:
            model.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        ledger = trace.positions(1)
        assert ledger.padding.sum() == 4
        assert ledger.prompt.tolist() == [False] * 4 + [True] * 8 + [False] * 5
        assert ledger.generated.tolist() == [False] * 12 + [True] * 5
        assert repr(ledger) == "Positions(17 tokens from 0: 4 padding, 8 prompt, 5 generated)"
        np.testing.assert_allclose(
            trace.at(-1, 1).gives(), np.stack(matrices(trace, 1))[:, :, -1], **CLOSE
        )

    def test_chosen_layers_and_heads(self) -> None:
        model = tiny("llama")
        with watch(model, layers=[0, 2], heads=[0, 1, 3]) as trace, torch.no_grad():
            model(**inputs(9))
        assert trace.at(4).gives(heads=[0, 3]).shape == (2, 2, 9)
        expected = np.stack(matrices(trace))[:, [0, 2], 4]
        np.testing.assert_allclose(trace.at(4).gives(heads=[0, 3]), expected, **CLOSE)
        assert trace[2].groups == ((0, 1), (3,))
        assert trace.at(4).gives(mean="groups").shape == (2, 2, 9)
        assert trace.head_scores(heads=[3]).top("sink", 1)[0].head == 3
        with pytest.raises(regard.OptionError, match=r"heads: got 2; .* holds 0, 1, 3"):
            trace.at(4).gives(heads=2)
        with pytest.raises(regard.LayerError, match="needs one of 0, 2"):
            trace.at(4).gives(layers=1)


def test_groups_of_heads() -> None:
    trace, _ = watched(tiny("llama"), **inputs(9))
    layer = trace[1]
    assert layer.groups == ((0, 1), (2, 3))
    received = layer.weights.received(last=4)
    mean = received.unflatten(1, (2, 2)).mean(2)
    torch.testing.assert_close(layer.by_group(received), mean)
    np.testing.assert_allclose(layer.by_group(received.numpy()), mean.numpy(), rtol=1e-6)
    with pytest.raises(regard.ShapeError, match=r"got shape \(2, 9\); needs \(batch, 4"):
        layer.by_group(received[:, 0])
    assert watched(tiny("bert"), **inputs(9))[0][0].groups == ((0,), (1,), (2,), (3,))


class TestBetween:
    @pytest.mark.parametrize("mean", [None, "heads", "groups", "layers", "all"])
    def test_words_and_sentences(
        self, trace: regard.Trace, mean: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(means, "SOME", 400)
        rows, columns = trace.words(), trace.sentences()
        whole = np.stack(matrices(trace))
        pooled = np.stack([whole[..., r.start : r.stop, :].mean(-2) for r in rows], -2)
        pooled = np.stack([pooled[..., c.start : c.stop].sum(-1) for c in columns], -1)
        expected = {
            None: pooled,
            "heads": pooled.mean(1),
            "groups": np.stack(
                [
                    pooled[:, [trace[0].heads.index(h) for h in group]].mean(1)
                    for group in trace[0].groups
                ],
                1,
            ),
            "layers": pooled.mean(0),
            "all": pooled.mean((0, 1)),
        }[mean]
        found = trace.between("words", "sentences", mean=mean)
        np.testing.assert_allclose(found, expected, **CLOSE)
        assert found.shape == expected.shape

    def test_named_words_and_spans(self, causal: regard.Trace) -> None:
        found = causal.between(["it", (3, 5)], ["dog", causal.words()[2]], layers=3)
        at_it = causal.at("it").gives(3)[..., [causal.at("dog").index, 2]]
        np.testing.assert_allclose(found[:, :, 0], at_it, **CLOSE)
        assert found.shape == (1, 9, 2, 2)

    def test_refusals(self, causal: regard.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
        for rows in ("word", 0, 10**6, [(5, 5)], [(0, 10**6)]):
            with pytest.raises(regard.OptionError, match="between: got "):
                causal.between(rows)
        with pytest.raises(regard.OptionError, match="mean: got 'mean'; needs"):
            causal.between(mean="mean")
        monkeypatch.setattr(means, "LIMIT", 100)
        with pytest.raises(regard.LimitError, match="numbers were asked for, and at most 100"):
            causal.between(mean="all")
        assert causal.between(3, 3, mean="all").shape == (3, 3)


class TestRollout:
    @given(st.data())
    def test_of_any_attention_is_a_product(self, data: Any) -> None:
        heads, L, S = (data.draw(st.integers(1, top)) for top in (3, 9, 9))
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        query, key = (rng.normal(size=(1, heads, n, 4)).astype(np.float32) for n in (L, S))
        options: Any = {
            "mask": data.draw(st.one_of(st.none(), masks((1, heads, L, S)))),
            "bias": data.draw(biases((1, heads, L, S))),
            "softcap": data.draw(st.sampled_from([None, 3.5])),
            "sinks": data.draw(st.sampled_from([None, rng.normal(size=heads)])),
        }
        whole = regard.weights(query, key, **options)[0]
        start = data.draw(st.integers(0, L - 1))
        mass = rng.random((2, data.draw(st.integers(1, L - start))))
        for head in range(heads):
            found = flow._gathered(whole[head : head + 1], mass, start)
            rows = whole[head, start : start + mass.shape[1], :].astype(np.float64)
            np.testing.assert_allclose(found, mass @ rows, **CLOSE)

    @pytest.mark.parametrize("padding", ["none", "left", "right"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_is_the_dense_product(self, family: str, padding: str) -> None:
        trace, _ = watched(tiny(family), **inputs(45, padding))
        for entry in (0, 1):
            product = np.eye(45)
            for whole in matrices(trace, entry):
                product = (0.3 * np.eye(45) + 0.7 * whole.mean(0)) @ product
            rows = [44, 3, 20]
            np.testing.assert_allclose(
                trace.rollout(rows, entry, residual=0.3), product[rows], rtol=1e-4, atol=1e-6
            )

    def test_of_a_word_and_in_inference_mode(self, smollm2: Any) -> None:
        model, tokenizer = smollm2
        given = tokenizer(TEXT, return_tensors="pt")
        with watch(model, tokenizer=tokenizer) as trace, torch.inference_mode():
            model(**given)
            during = trace.rollout("Unbelievably")
        word = trace.at("Unbelievably")
        np.testing.assert_allclose(trace.rollout("Unbelievably"), during, rtol=1e-6)
        np.testing.assert_allclose(word.rollout(), during, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(trace.rollout(["Unbelievably", 0])[0], during, atol=1e-9)
        assert during.sum() == pytest.approx(1.0, abs=1e-5)

    def test_many_rows_and_refusals(
        self, causal: regard.Trace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        every = range(len(causal.tokens()))
        together = causal.rollout(every)
        monkeypatch.setattr(flow, "AT_ONCE", 5)
        np.testing.assert_allclose(causal.rollout(every), together, atol=1e-5)
        with pytest.raises(regard.OptionError, match=r"residual: got 1\.5; needs a share from 0"):
            causal.rollout(0, residual=1.5)
        monkeypatch.setattr(flow, "LIMIT", 30)
        with pytest.raises(regard.LimitError, match=r"rollout: .* at most 30 are given at once"):
            causal.rollout(every)


def test_sentences_of_a_trace(trace: regard.Trace) -> None:
    found = [s for s in trace.sentences(text=TEXT) if not s.special]
    assert [s.words[0].text for s in found] == ["The", "It", "Unbelievably"]


class TestErrors:
    def test_words_and_tokens_that_are_not_there(self, causal: regard.Trace) -> None:
        count = len(causal.tokens())
        with pytest.raises(regard.TextError, match='word: "horse" is not in the text'):
            causal.at("horse")
        for token in (count, -count - 1):
            with pytest.raises(regard.TextError, match=f"got {token}; needs a number from -"):
                causal.at(token)
        with pytest.raises(regard.TextError, match="at: got float; needs a word, or the number"):
            causal.at(1.5)
        with pytest.raises(regard.OptionError, match="entry: got 1; needs a number from -1 to 0"):
            causal.at("it", 1)
        with pytest.raises(regard.OptionError, match="by: got 'letter'; needs"):
            causal.at("it").gives(by="letter")
        with pytest.raises(regard.TextError, match="trace: holds neither tokens nor self-att"):
            causal.at(0, decoder=True)

    def test_without_weights_or_words(self) -> None:
        model, given = tiny("llama"), inputs(9)
        with watch(model, keep="statistics") as trace, torch.no_grad():
            model(**given)
        for ask in (trace.at(0).gives, trace.head_scores, trace.between):
            with pytest.raises(regard.ModelError, match="kept statistics only; needs"):
                ask()
        with pytest.raises(regard.ModelError, match="kept statistics only; needs"):
            trace.rollout(0)
        plain, _ = watched(model, **given)
        assert plain.at(2).word is None
        for ask in (lambda: plain.at("it"), lambda: plain.at(2).gives(by="word"), plain.sentences):
            with pytest.raises(regard.TextError, match="tokenizer: none was given"):
                ask()

    def test_an_empty_trace_and_a_decoders_layers(self, bart: regard.Trace) -> None:
        with pytest.raises(regard.ModelError, match="trace: is empty; call the model inside"):
            regard.Trace().at(0)
        with pytest.raises(regard.LayerError, match="layers: 0 is not among those that is self"):
            bart.at(0, decoder=True).gives(layers=0)


def test_tiles_stay_small(causal: regard.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    word = causal.at("Unbelievably")
    whole = word.gives(), word.gets()
    monkeypatch.setattr(reading, "SOME", 30)
    np.testing.assert_allclose(word.gives(), whole[0], rtol=1e-6)
    np.testing.assert_allclose(word.gets(), whole[1], rtol=1e-6)
