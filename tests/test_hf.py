"""regard as the attention of transformers' models, against their own eager attention."""

from typing import Any

import pytest
import torch
from tiny_models import CACHE, DECODERS, FAMILIES, difference, hidden, inputs, output, tiny
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import StaticCache

import regard
import regard.hf
from regard._watch import interface
from regard._watch.interface import attention_forward

RELATIVE = 1e-5
WEIGHT = 2e-5  # absolute, of single weights; the models differ by rounding from the first layer on


def agreement(model: Any, attention: str, given: dict[str, torch.Tensor]) -> tuple[float, float]:
    """How far another attention is from eager: in the output, relatively, and in any weight."""
    eager = output(model, "eager", **given, output_attentions=True)
    other = output(model, attention, **given, output_attentions=True)
    real = given["attention_mask"].bool()
    assert len(other.attentions) == len(eager.attentions) == model.config.num_hidden_layers
    weights = max(
        float((a - b).abs().amax(dim=(1, 3))[real].max())
        for a, b in zip(other.attentions, eager.attentions, strict=True)
    )
    return difference(hidden(other), hidden(eager), real), weights


# 200 tokens reach over several blocks of keys and over every window.
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_compute_what_they_compute_with_eager(family: str, padding: str) -> None:
    model = tiny(family)
    relative, weights = agreement(model, "regard", inputs(200, padding))
    assert relative < RELATIVE
    assert weights < WEIGHT


@pytest.mark.once
@pytest.mark.parametrize("family", FAMILIES)
def test_their_attention_is_far_from_uniform(family: str) -> None:
    eager = output(tiny(family), "eager", **inputs(200), output_attentions=True)
    assert max(float(w.amax(-1).mean()) for w in eager.attentions) > 10 / 200


BROKEN = {
    "no mask": ("llama", "left", {"attention_mask": None}),
    "not causal": ("llama", "none", {"attention_mask": None, "is_causal": False}),
    "no window": ("mistral", "none", {"attention_mask": None, "sliding_window": None}),
    "no padding": ("bert", "right", {"attention_mask": None, "is_causal": False}),
    "no softcap": ("gemma2", "none", {"softcap": None}),
    "no sinks": ("gpt_oss", "none", {"s_aux": None}),
    "wrong scale": ("bert", "none", {"scaling": 0.3}),
}


@pytest.mark.once
@pytest.mark.parametrize("fault", BROKEN)
def test_the_comparison_can_fail(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, padding, lost = BROKEN[fault]

    def broken(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        given = {"attention_mask": mask} | options | lost
        return attention_forward(module, query, key, value, **given)

    monkeypatch.setitem(AttentionInterface._global_mapping, "broken", broken)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "broken", interface.make_mask)
    relative, weights = agreement(tiny(family), "broken", inputs(200, padding))
    assert relative > 100 * RELATIVE
    assert weights > 100 * WEIGHT


def generated(model: Any, attention: str, padding: str, **options: Any) -> list[list[int]]:
    model.set_attn_implementation(attention)
    found: list[list[int]] = model.generate(
        **inputs(40, padding), max_new_tokens=12, min_new_tokens=12, do_sample=False, **options
    ).tolist()
    return found


@pytest.mark.once
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", DECODERS)
def test_generate_gives_the_tokens_of_eager(family: str, padding: str) -> None:
    model = tiny(family)
    assert generated(model, "regard", padding) == generated(model, "eager", padding)


@pytest.mark.once
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_generate_with_a_static_cache(family: str) -> None:
    model = tiny(family)
    options = {"cache_implementation": "static", "disable_compile": True}
    expected = generated(model, "eager", "left")
    assert generated(model, "regard", "left", **options) == expected


def test_prefill_in_chunks_with_left_padding() -> None:
    model, given = tiny("llama"), inputs(60, "left")
    whole = hidden(output(model, "eager", **given))
    cache: Any = StaticCache(config=model.config, max_cache_len=80)
    ids, mask = given["input_ids"], given["attention_mask"]
    parts = [
        hidden(
            output(
                model,
                "regard",
                input_ids=ids[:, a : a + 20],
                attention_mask=mask[:, : a + 20],
                position_ids=torch.arange(a, a + 20)[None],
                **{CACHE: cache},
            )
        )
        for a in (0, 20, 40)
    ]
    assert difference(torch.cat(parts, 1), whole, mask) < RELATIVE


@pytest.mark.once
def test_training_has_the_gradients_of_eager() -> None:
    model, given = tiny("llama"), inputs(50, "right")
    gradients = []
    for attention in ("eager", "regard"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        model(**given).logits[given["attention_mask"].bool()].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).abs().max() < RELATIVE * gradients[0].abs().max()


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_users_own_mask(kind: str, heads: int) -> None:
    model, given = tiny("llama"), inputs(50)
    seen = torch.rand(2, heads, 50, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    seen |= torch.eye(50, dtype=torch.bool)
    scores = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mine = seen if kind == "bool" else scores
    ids = given["input_ids"]
    eager = hidden(output(model, "eager", input_ids=ids, attention_mask=scores))
    other = hidden(output(model, "regard", input_ids=ids, attention_mask=mine))
    assert difference(other, eager, torch.ones(2, 50)) < RELATIVE


def call_arguments() -> dict[str, Any]:
    """2 entries, 4 heads, 2 key/value heads, 6 queries, 6 keys."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, 6, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 6, 8, generator=generator)
    return {"query": query, "key": key, "value": value, "attention_mask": None}


def call(module: Any = None, **options: Any) -> Any:
    """A bare call as a model makes it."""
    return attention_forward(module or torch.nn.Identity(), **{**call_arguments(), **options})


def test_no_mask_is_causal_unless_the_option_or_the_module_says_otherwise() -> None:
    everything = torch.ones(6, 6, dtype=torch.bool)
    causal = call(attention_mask=everything.tril())[0]
    full = call(attention_mask=everything)[0]
    assert torch.equal(call()[0], causal)
    assert torch.equal(call(is_causal=False)[0], full)
    assert torch.equal(call(is_causal=True, attention_mask=everything)[0], full)
    one_query = torch.ones(2, 4, 1, 8)
    assert torch.equal(call(query=one_query)[0], call(query=one_query, is_causal=False)[0])


def test_position_bias_is_added_beside_masks_of_either_kind() -> None:
    bias = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    hidden_scores = torch.zeros(6, 6).masked_fill(~causal, float("-inf"))
    expected = call(attention_mask=bias + hidden_scores)[0]
    assert torch.equal(call(position_bias=bias)[0], expected)
    assert torch.equal(call(position_bias=bias, attention_mask=causal)[0], expected)
    assert torch.equal(call(position_bias=bias, attention_mask=hidden_scores)[0], expected)
    assert not torch.allclose(call()[0], expected)


@pytest.mark.once
@pytest.mark.parametrize("name", ["cache", "rel_pos", "some_future_option"])
def test_an_option_that_is_not_served_is_refused_by_name(name: str) -> None:
    with pytest.raises(regard.OptionError, match=f"{name}: Identity passes this option"):
        call(**{name: torch.ones(2)})
    assert call(**{name: None})[1] is None


LENGTHS = torch.tensor([0, 2, 6], dtype=torch.int32)


def packed(**options: Any) -> torch.Tensor:
    """One row of the batch, that holds sequences of 2 and 4 tokens."""
    whole = call_arguments()
    one = {name: whole[name][:1] for name in ("query", "key", "value")}
    found: torch.Tensor = call(**{**one, "cu_seq_lens_q": LENGTHS, **options})[0]
    return found


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("given", ["both", "queries alone", "keys alone"])
def test_packed_sequences_do_not_see_each_other(given: str, is_causal: bool) -> None:
    sequence = torch.tensor([0, 0, 1, 1, 1, 1])
    own = sequence[:, None] == sequence
    expected = packed(attention_mask=own.tril() if is_causal else own, cu_seq_lens_q=None)
    lengths = {
        "cu_seq_lens_q": None if given == "keys alone" else LENGTHS,
        "cu_seq_lens_k": None if given == "queries alone" else LENGTHS,
        "max_length_q": 4,
        "max_length_k": 4,
    }
    assert torch.equal(packed(is_causal=is_causal, **lengths), expected)


def test_packed_sequences_keep_the_mask_that_is_given_beside_them() -> None:
    diagonal = torch.eye(6, dtype=torch.bool)
    expected = packed(attention_mask=diagonal, cu_seq_lens_q=None)
    assert torch.equal(packed(attention_mask=diagonal), expected)


def test_chosen_keys_are_the_only_ones_that_are_seen() -> None:
    chosen = torch.tensor([[0, 3], [1, 0], [2, 1], [0, 5], [4, 2], [5, 4]]).expand(2, 6, 2)
    seen = torch.zeros(6, 6, dtype=torch.bool).scatter_(1, chosen[0], True)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = call(attention_mask=seen & causal)[0]
    assert torch.equal(call(indices=chosen.int())[0], expected)
    assert torch.equal(call(indices=chosen, attention_mask=causal)[0], expected)


def test_chosen_blocks_become_the_mask_that_the_module_makes_of_them() -> None:
    scores = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4))

    class Indexer(torch.nn.Module):
        def build_block_mask(self, *given: Any) -> torch.Tensor:
            assert given == (blocks, None, 6, torch.float32, torch.device("cpu"), places)
            return scores

    module, blocks, places = torch.nn.Identity(), torch.zeros(2, 1, 6, 1), torch.arange(6)
    module.indexer = Indexer()
    found = call(module, block_indices=blocks, position_ids=places)[0]
    assert torch.equal(found, call(attention_mask=scores)[0])


def test_a_module_that_is_causal_in_name_only_sees_everything() -> None:
    class BridgeTowerSelfAttention(torch.nn.Module):
        is_causal = True

    everything = call(is_causal=False)[0]
    assert torch.equal(call(BridgeTowerSelfAttention())[0], everything)
    assert not torch.equal(call(BridgeTowerSelfAttention(), is_causal=True)[0], everything)


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sinks": torch.ones(2, 4, 6, 1)}, regard.OptionError, r"sinks of shape \(2, 4, 6, 1\)"),
        ({"sinks": torch.ones(4), "s_aux": torch.ones(4)}, regard.OptionError, "mean the same"),
        ({"sliding_window": 3}, regard.OptionError, "asks for 3 of 6 keys without a mask"),
        ({"softcap": -1.0}, regard.OptionError, "softcap: needs a positive float32 number"),
        ({"attention_mask": torch.ones(6, 6).int()}, regard.DtypeError, "int32; needs booleans"),
        ({"cu_seq_lens_q": LENGTHS}, regard.OptionError, r"passes \[0, 2, 6\] for a batch of 2"),
        ({"block_indices": torch.ones(2)}, regard.OptionError, "without an indexer"),
        ({"attention_mask": "causal"}, regard.DtypeError, "attention_mask: got str"),
        ({"attention_mask": torch.ones(7, 7).bool()}, regard.ShapeError, r"mask: got .*\(7, 7\)"),
        ({"output_attentions": True, "dropout": 0.5}, regard.OptionError, "before dropout"),
        (
            {"output_attentions": True, "query": torch.ones(2, 4, 6, 8, requires_grad=True)},
            regard.DtypeError,
            "requires a gradient",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(**options)


def test_packed_keys_that_do_not_fit_causal_queries_are_refused() -> None:
    with pytest.raises(regard.OptionError, match=r"passes \[0, 3, 6\], other than cu_seq_lens_q"):
        packed(cu_seq_lens_k=torch.tensor([0, 3, 6]))
    with pytest.raises(regard.OptionError, match="lengths that add up from 0 to 6"):
        packed(cu_seq_lens_k=torch.tensor([0, 3, 5]))


def test_options_that_change_nothing_are_taken() -> None:
    taken = call(position_ids=torch.arange(6), use_cache=True, output_hidden_states=True)
    assert torch.equal(taken[0], call()[0])


def test_dropout_drops() -> None:
    value = torch.eye(6).expand(2, 2, 6, 6)
    weights = call(value=value)[0]
    dropped = call(value=value, dropout=0.5)[0]
    assert 0.2 < (dropped[weights > 0] == 0).float().mean() < 0.8
    kept = dropped > 0
    torch.testing.assert_close(dropped[kept], 2 * weights[kept])
