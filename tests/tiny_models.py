"""Small random models of several families, and what they are called with.

Their weights are larger than transformers' usual 0.02, with which attention is nearly uniform and
hides mistakes.
"""

import inspect
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers import masking_utils

import regard

# What transformers calls the cache that is handed on: `past_key_values` until 5.24.
_MAKER = inspect.signature(masking_utils.create_causal_mask)
CACHE = "cache" if "cache" in _MAKER.parameters else "past_key_values"

VOCABULARY = 97
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 16}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

# What is worth watching in each: grouped heads; both ways; normed queries and keys; a window;
# softcap beside a window; learned sinks beside a window; chunks; absolute positions; ALBERT's one
# layer that runs three times.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "bert": ("Bert", COMMON),
    "qwen3": ("Qwen3", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 24}),
    "gemma2": (
        "Gemma2",
        {**GROUPED, "sliding_window": 24, "attn_logit_softcapping": 5.0, "layer_types": TYPES},
    ),
    "gemma3": ("Gemma3Text", {**GROUPED, "sliding_window": 24, "layer_types": TYPES}),
    "gpt_oss": (
        "GptOss",
        {**GROUPED, "sliding_window": 24, "layer_types": TYPES, "num_local_experts": 2}
        | {"num_experts_per_tok": 1},
    ),
    "gpt_neox": ("GPTNeoX", COMMON),
    "albert": ("Albert", {**COMMON, "embedding_size": 32}),
}
ENCODERS = ("bert", "albert")
DECODERS = tuple(name for name in FAMILIES if name not in ENCODERS)


def tiny(family: str, **changes: Any) -> Any:
    """A model of a family, in eval mode, always with the same weights."""
    name, options = FAMILIES[family]
    config = getattr(hf, f"{name}Config")(**{**options, **changes})
    kind = getattr(hf, f"{name}Model" if family in ENCODERS else _causal_class(name))
    return scrambled(kind(config))


def _causal_class(name: str) -> str:
    return f"{name.removesuffix('Text')}ForCausalLM"


def scrambled(model: Any, deviation: float = 0.2) -> Any:
    """The model with the weights that every test sees."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 or parameter.shape[0] == COMMON["num_attention_heads"]:
                parameter.normal_(std=deviation, generator=generator)
    return model.eval()


def inputs(length: int, padding: str = "none") -> dict[str, torch.Tensor]:
    """Two texts, the second of which is padded up to the length of the first."""
    ids = torch.randint(1, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    pads = length // 3
    if padding == "left":
        mask[1, :pads] = 0
    elif padding == "right":
        mask[1, length - pads :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def output(model: Any, attention: str, **given: Any) -> Any:
    """What the model puts out with an attention implementation; it keeps the one it had."""
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            return model(**given)
    finally:
        model.set_attn_implementation(before)


def hidden(result: Any) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    found: torch.Tensor = result[0]
    return found


def difference(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor) -> float:
    """The greatest difference at real positions, relative to the greatest number."""
    a, b = a[real.bool()], b[real.bool()]
    return float((a - b).abs().max() / b.abs().max())


def watched(model: Any, **given: Any) -> tuple[regard.Trace, Any]:
    """The trace of a call, and what the model put out."""
    options = {name: given.pop(name) for name in ("observe", "tokenizer") if name in given}
    with regard.watch(model, **options) as trace, torch.no_grad():
        result = model(**given)
    return trace, result


def matrices(trace: regard.Trace, entry: int = 0) -> list[np.ndarray]:
    """The weights of every layer of a trace, (heads, L, S) each."""
    return [np.asarray(layer.weights[entry], np.float64) for layer in trace]
