"""Attentions with one fault each, which the comparison with eager must catch."""

from collections.abc import Callable
from typing import Any

import pytest
from families import HEADS, disagreement
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import masking_utils as stock

from regard._watch.interface import attention_forward
from regard._watch.masks import make_mask

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

CAUGHT = 1e-3  # a hundred times the tolerance


def without(option: str) -> Callable[..., Any]:
    def broken(*args: Any, **options: Any) -> Any:
        return attention_forward(*args, **options | {option: None})

    return broken


def groups_interleaved(
    module: Any, query: Any, key: Any, value: Any, mask: Any = None, **options: Any
) -> Any:
    """Head h with keys h % 2 instead of h // 2, as if each key head served every other head."""
    times = HEADS // key.shape[1]
    key, value = (x.repeat(1, times, 1, 1) for x in (key, value))
    return attention_forward(module, query, key, value, mask, **options)


def scaled_a_little_more(*args: Any, **options: Any) -> Any:
    scale = options.get("scaling") or args[1].shape[-1] ** -0.5
    return attention_forward(*args, **options | {"scaling": 1.05 * scale})


def fails(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    padding: str = "none",
    attention: Callable[..., Any] = attention_forward,
    mask: Callable[..., Any] = make_mask,
) -> bool:
    monkeypatch.setitem(AttentionInterface._global_mapping, "broken", attention)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "broken", mask)
    return disagreement(family, "broken", padding) > CAUGHT


def taken_over(option: str, *families: str) -> list[Any]:
    return [pytest.param(option, family, id=f"{option}-{family}") for family in families]


@pytest.mark.parametrize(
    ("option", "family"),
    [
        *taken_over("softcap", "gemma2", "t5gemma", "vaultgemma"),
        *taken_over("s_aux", "flint", "gptoss", "graniteswa", "granitemoeswa", "mimov2flash"),
        *taken_over("s_aux", "hyv4", "openaiprivacyfilter"),
        *taken_over("position_bias", "inkling", "longt5", "mt5", "pix2struct", "pop2piano"),
        *taken_over("position_bias", "switchtransformers", "t5", "umt5"),
        *taken_over("position_bias", "wav2vec2bert", "wav2vec2conformer"),
        *taken_over("indices", "deepseekv32", "glmmoedsa"),
        *taken_over("scaling", "gemma2", "granite"),
    ],
)
def test_a_dropped_option_is_caught(
    option: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fails(monkeypatch, family, attention=without(option))


@pytest.mark.parametrize(
    "family",
    ["cohere", "gemma2", "gptoss", "llama", "mixtral", "phi3", "qwen2", "qwen3moe", "olmo3"],
)
def test_a_wrong_mapping_of_groups_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(monkeypatch, family, attention=groups_interleaved)


@pytest.mark.parametrize("family", ["bart", "deepseekv3", "llama", "t5", "vit", "wav2vec2"])
def test_a_wrong_scale_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(monkeypatch, family, attention=scaled_a_little_more)


@pytest.mark.parametrize(
    "family", ["cohere2", "gemma2", "gemma3", "gptoss", "mimov2flash", "mistral", "olmo3"]
)
def test_a_dropped_window_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **given: Any) -> Any:
        return make_mask(*args, **given | {"mask_function": stock.causal_mask_function})

    assert fails(monkeypatch, family, mask=broken)


@pytest.mark.parametrize("family", ["bart", "gpt2", "llama", "t5", "whisper"])
def test_a_decoder_that_sees_the_future_is_caught(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **given: Any) -> Any:
        return make_mask(*args, **given | {"mask_function": stock.bidirectional_mask_function})

    assert fails(monkeypatch, family, mask=broken)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", ["distilbert", "mbart", "modernbert", "t5"])
def test_dropped_padding_is_caught(
    family: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **given: Any) -> Any:
        return make_mask(*args, **given | {"attention_mask": None})

    assert fails(monkeypatch, family, padding, mask=broken)
