"""The families of models that go through transformers' attention interface, as small as they go.

Each is built from its configuration, with the sizes below wherever the configuration has them, and
scrambled, so that attention is far from even. What a family needs beside that stands in OPTIONS.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tiny_models import VOCABULARY, difference, hidden, inputs, output, scrambled

# Longer than a block of keys (128) and every window; not a multiple of anything.
LENGTH = 150
HEADS = 4
SIZES: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCABULARY),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embed_dim"], 64),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"], 96),
    **dict.fromkeys(["d_ff", "n_inner", "ffn_hidden_size", "expert_ffn_hidden_size"], 96),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_decoder_layers", "num_encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], HEADS),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], HEADS),
    "swa_num_attention_heads": HEADS,
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "swa_head_dim", "d_kv"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 512),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(["sliding_window", "sliding_window_size"], 24),
    "image_size": 96,
    "patch_size": 8,
    "num_mel_bins": 16,
    "conv_dim": (32, 32),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "query_pre_attn_scalar": 4,
    "layerdrop": 0.0,
}

GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
# Multi-latent attention: queries and keys are wider than values, and a part of them is rotated.
LATENT = {
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 12,
}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
# An indexer chooses the keys that each query may see.
CHOSEN = {"index_topk": 40, "index_head_dim": 16, "index_n_heads": 2}
ROTATED = {"rotary_dim": 8}
DECODING = {"is_decoder": True}
STARTED = {"decoder_start_token_id": 1}
SHORT_STATES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def _named(suffix: str, names: str) -> dict[str, str]:
    return {name.lower(): name + suffix for name in names.split()}


DECODERS = _named(
    "ForCausalLM",
    "Afmoe Apertus Arcee AXK1 AXK2 Bamba Beam BioGpt BitNet Camembert CodeGen Cohere Cohere2 "
    "Cohere2Moe Cwm DeepseekV2 DeepseekV3 DeepseekV32 DeepseekV4 DiffLlama Doge Dots1 "
    "Electra Emu3 Ernie Ernie4_5 Ernie4_5_Moe Exaone4 ExaoneMoe FlexOlmo Flint Gemma Gemma2 "
    "Gemma3 Gemma3n Glm Glm4 Glm4Moe Glm4MoeLite GlmMoeDsa GPTBigCode GPTJ GPTNeoX GptOss "
    "Granite GraniteMoe GraniteMoeShared GraniteMoeSWA GraniteSWA Helium HrmText HunYuanDenseV1 "
    "HunYuanMoEV1 HyperCLOVAX HYV3 HYV4 Inkling Jais2 Jamba JetMoe Kolibri1 "
    "Laguna LaraMini Lfm2 Lfm2Moe Lfm3 Llama Llama4 LongcatFlash Mellum MiMoV2Flash MiniCPM3 "
    "MiniMax MiniMaxM2 MiniMaxM3VL Ministral Ministral3 Mistral Mistral4 Mixtral Mllama "
    "ModernBertDecoder Moshi NanoChat Nemotron NemotronH Olmo Olmo2 Olmo3 Olmoe OlmoHybrid OPT "
    "Persimmon Phi Phi3 Phimoe Qwen2 Qwen2Moe Qwen3 Qwen3_5 Qwen3_5Moe Qwen3Moe Qwen3Next "
    "Roberta RobertaPreLayerNorm SeedOss SmolLM3 SolarOpen StableLm Starcoder2 VaultGemma "
    "XLMRoberta XLMRobertaXL Youtu",
) | {"bert": "BertLMHeadModel", "gpt2": "GPT2LMHeadModel", "ctrl": "CTRLLMHeadModel"}
ENCODERS = _named(
    "Model",
    "Albert CLIPText DistilBert EuroBert Gte JinaEmbeddingsV3 LayoutLM MarkupLM MobileBert "
    "ModernBert NomicBert OpenAIPrivacyFilter Splinter Ultrabert",
)
CROSSING = _named(
    "ForConditionalGeneration",
    "Bart BigBirdPegasus Blenderbot BlenderbotSmall LongT5 M2M100 MBart MT5 NllbMoe Pegasus "
    "PegasusX PLBart Pop2Piano SwitchTransformers T5 T5Gemma T5Gemma2 UMT5",
) | {
    "marian": "MarianMTModel",
    "seamless_m4t": "SeamlessM4TForTextToText",
    "seamless_m4t_v2": "SeamlessM4Tv2ForTextToText",
}
VISION = _named(
    "Model",
    "Aimv2Vision Beit ChineseCLIPVision CLIPVision DeiT Dinov2 Dinov2WithRegisters DINOv3ViT DPT "
    "IJepa MLCDVision Pixio PixtralVision Radio Sapiens2 Segformer SiglipVision Swin VideoMAE "
    "ViT ViTMAE ViTMSN Vivit Yolos",
)
SPEECH = _named(
    "Model",
    "Data2VecAudio Hubert SEW UniSpeech UniSpeechSat Wav2Vec2 Wav2Vec2Conformer",
)
# Speech or pictures in, text out; and an encoder of spectra.
OTHERS = {
    "bridgetower": "BridgeTowerModel",
    "git": "GitForCausalLM",
    "layoutlmv3": "LayoutLMv3Model",
    "moonshine": "MoonshineForConditionalGeneration",
    "parakeet_encoder": "ParakeetEncoder",
    "pix2struct": "Pix2StructForConditionalGeneration",
    "qwen2_5_vl_vision": "Qwen2_5_VisionTransformerPretrainedModel",
    "speech_to_text": "Speech2TextForConditionalGeneration",
    "udop": "UdopForConditionalGeneration",
    "wav2vec2bert": "Wav2Vec2BertModel",
    "whisper": "WhisperForConditionalGeneration",
}
FAMILIES = DECODERS | ENCODERS | CROSSING | VISION | SPEECH | OTHERS

OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk1", "deepseekv3", "glm4moelite", "mistral4"], LATENT | ONE_GROUP),
    "deepseekv2": LATENT | ONE_GROUP | {"num_experts_per_tok": 2},
    **dict.fromkeys(["axk2", "deepseekv32", "glmmoedsa", "hyv4"], LATENT | ONE_GROUP | CHOSEN),
    "deepseekv4": CHOSEN
    | {"q_lora_rank": 16, "o_groups": 2, "o_lora_rank": 16, "qk_rope_head_dim": 8},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "has_relative_attention_bias": True}
    | {"has_spatial_attention_bias": True, "visual_embed": False},
    "parakeet_encoder": {"subsampling_conv_channels": 16, "num_key_value_heads": HEADS},
    "qwen2_5_vl_vision": {"depth": 2, "fullatt_block_indexes": [1], "out_hidden_size": 64},
    "swin": {
        "embed_dim": 32,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 6,
        "patch_size": 4,
    },
    "minimaxm3vl": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 16,
        "index_topk_blocks": 3,
        "rotary_dim": 8,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 32,
    },
    **dict.fromkeys(["minicpm3", "youtu"], LATENT),
    "longcatflash": LATENT | {"moe_topk": 2, "zero_expert_num": 2},
    **dict.fromkeys(["codegen", "gptj"], ROTATED),
    **dict.fromkeys(["hunyuandensev1", "hunyuanmoev1", "ministral", "nemotron"], GROUPED),
    "dots1": GROUPED
    | ONE_GROUP
    | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    **dict.fromkeys(["qwen3next", "qwen3_5", "qwen3_5moe"], SHORT_STATES),
    "nemotronh": {"ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "lfm2moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "gemma3n": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "intermediate_size": [96, 96],
        "activation_sparsity_pattern": [0.5, 0.0],
    },
    "gemma2": {"attn_logit_softcapping": 5.0},
    "vaultgemma": {"attn_logit_softcapping": 5.0},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "moonshine": {
        f"{part}_num_{count}": n
        for part in ("encoder", "decoder")
        for count, n in (("hidden_layers", 2), ("attention_heads", 4), ("key_value_heads", 4))
    },
    "speech_to_text": {"conv_channels": 32, "input_feat_per_channel": 16},
    "wav2vec2bert": {
        "feature_projection_input_dim": 20,
        "position_embeddings_type": "relative_key",
    },
    "whisper": {"max_source_positions": LENGTH, "max_target_positions": 300},
    "markuplm": {"max_depth": 2},
    **dict.fromkeys(["longt5", "marian", "switchtransformers", "t5"], STARTED),
    "yolos": {"image_size": [96, 96]},
    "vitmae": {"mask_ratio": 0.0},
    "videomae": {"num_frames": 4, "tubelet_size": 2},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    **dict.fromkeys(["bert", "camembert", "electra", "ernie", "roberta"], DECODING),
    **dict.fromkeys(["robertaprelayernorm", "xlmroberta", "xlmrobertaxl"], DECODING),
}
# T5 does not scale its scores: weights of the usual size would make them so large that rounding
# alone goes past the tolerance.
DEVIATION = dict.fromkeys(
    ["mt5", "umt5", "pop2piano", "t5", "longt5", "switchtransformers", "pix2struct", "udop"], 0.1
)

# These norm queries and keys, and then scale the scores down: their attention stays even.
SHARPENED = ["gemma3", "inkling"]
# Whose attention theirs is compared with, where that is not eager: MiniMax M3 chooses keys by the
# states of padded tokens too, which see nothing. That gives 0 here and with sdpa, but an average of
# all values with eager.
REFERENCE = {"minimaxm3vl": "sdpa"}


def build(family: str) -> Any:
    """A model of a family, in eval mode, always with the same weights."""
    kind = getattr(hf, FAMILIES[family])
    config = kind.config_class(**sizes(kind.config_class, OPTIONS.get(family, {})))
    with torch.random.fork_rng():
        torch.manual_seed(5)  # for what is not scrambled, as the biases of convolutions
        model = scrambled(kind(config), DEVIATION.get(family, 0.2))
    if family in SHARPENED:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("q_norm.weight", "k_norm.weight")):
                    weight.add_(3)
    return model


def sizes(config: Any, more: dict[str, Any]) -> dict[str, Any]:
    """SIZES, as far as the configuration has them, and those of the configurations within it."""
    usual = config()
    given = {n: x for n, x in SIZES.items() if isinstance(getattr(usual, n, None), type(x))}
    kinds = list(dict.fromkeys(usual.to_dict().get("layer_types") or ()))
    if kinds and "layer_types" not in more:  # each kind of layer once, and at least two layers
        given["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        given["num_hidden_layers"] = len(given["layer_types"])
    for part in usual.sub_configs:
        within = getattr(usual, part, None)
        if within is not None:
            given[part] = sizes(type(within), {}) | {"model_type": within.model_type}
    return given | more


def _pictures(model: Any) -> torch.Tensor:
    size = getattr(model.config, "image_size", 96)
    shape = (size, size) if isinstance(size, int) else tuple(size)
    return _noise(2, model.config.num_channels, *shape)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _boxes() -> torch.Tensor:
    """Where each token stands on a page: left, top, right, bottom."""
    corner = torch.randint(0, 100, (2, LENGTH, 2), generator=torch.Generator().manual_seed(9))
    return torch.cat([corner, corner + 20], -1)


def _filmed(model: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": _pictures(model)[:, None].repeat(1, 4, 1, 1, 1) * _noise(2, 4, 1, 1, 1)}


def _sounding(features: Callable[[], torch.Tensor], name: str) -> Callable[[Any], Any]:
    ids = inputs(20)["input_ids"]
    return lambda _: {name: features(), "decoder_input_ids": ids}


_INPUTS: dict[str, Callable[[Any], dict[str, torch.Tensor]]] = {
    "bridgetower": lambda model: inputs(LENGTH, "right") | {"pixel_values": _noise(2, 3, 96, 96)},
    "layoutlmv3": lambda _: inputs(LENGTH, "right") | {"bbox": _boxes()},
    "parakeet_encoder": lambda _: {
        "input_features": _noise(2, 8 * LENGTH, 16),
        "attention_mask": inputs(8 * LENGTH, "right")["attention_mask"],
    },
    "qwen2_5_vl_vision": lambda _: {
        "hidden_states": _noise(16 * 12, 3 * 2 * 8 * 8),
        "grid_thw": torch.tensor([[1, 8, 8], [1, 8, 16]]),
    },
    "udop": lambda _: (
        inputs(LENGTH, "right")
        | {"bbox": _boxes() / 200, "decoder_input_ids": inputs(20)["input_ids"]}
    ),
    "git": lambda model: (
        inputs(LENGTH, "right")
        | {"pixel_values": _noise(2, 3, model.config.vision_config.image_size, 96)}
    ),
    "videomae": _filmed,
    "vivit": _filmed,
    "vitmae": lambda model: {"pixel_values": _pictures(model), "noise": _noise(2, 144)},
    "moonshine": _sounding(lambda: _noise(2, 60000), "input_values"),
    "speech_to_text": _sounding(lambda: _noise(2, 600, 16), "input_features"),
    "whisper": _sounding(lambda: _noise(2, 16, 2 * LENGTH), "input_features"),
    "wav2vec2bert": lambda _: {"input_features": _noise(2, LENGTH, 20)},
    "pix2struct": _sounding(
        lambda: torch.cat(
            [torch.arange(1.0, 145).view(1, -1, 1).repeat(2, 1, 2) % 12 + 1, _noise(2, 144, 768)],
            -1,
        ),
        "flattened_patches",
    ),
}


def given_to(family: str, model: Any, padding: str = "none") -> dict[str, torch.Tensor]:
    """What a model of the family is called with; the second entry of a batch may be padded."""
    if family in _INPUTS:
        return _INPUTS[family](model)
    if family in VISION:
        return {"pixel_values": _pictures(model)}
    if family in SPEECH:
        return {"input_values": _noise(2, 3100)}
    given = inputs(LENGTH, padding)
    if family in CROSSING:
        given["decoder_input_ids"] = inputs(LENGTH - 10)["input_ids"]
    return given


def disagreement(family: str, attention: str, padding: str = "none") -> float:
    """How far the output is from the reference's, relatively, wherever a token is no padding."""
    model = build(family)
    given = given_to(family, model, padding)
    reference = hidden(output(model, REFERENCE.get(family, "eager"), **given))
    other = hidden(output(model, attention, **given))
    real = given.get("attention_mask")
    if real is None or real.shape != reference.shape[:2]:
        real = torch.ones(reference.shape[:1])
    return difference(other, reference, real)
