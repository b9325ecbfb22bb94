"""The families of transformers with attention that tests/families.py does not hold, and why.

Names are those of the folders of transformers.models. The lists are of one version of transformers;
tests/test_families_beyond.py says what has changed in another.
"""

VERSION = "5.24.0"


def _names(listed: str) -> list[str]:
    return listed.split()


# Their own attentions call no registered function: set_attn_implementation warns or does nothing,
# and regard.watch raises a ModelError, or warns where other parts of the model do call it.
PAST_THE_INTERFACE = _names("""
    autoformer bark big_bird blip bloom bros canine clvp convbert cpmant cvt dab_detr deberta
    deberta_v2 dinat donut falcon fastspeech2_conformer flaubert flava fsmt funnel glpn got_ocr2
    gpt_neo gpt_neox_japanese granite_speech granite_speech_plus grounding_dino groupvit hiera
    ibert imagegpt layoutlmv2 led levit lilt longformer luke lxmert mask2former megatron_bert
    mgp_str mm_grounding_dino mobilevit mobilevitv2 mpnet mpt mra mvp nystromformer omdet_turbo
    oneformer openai perceiver prophetnet pvt pvt_v2 reformer rembert roformer rwkv seggpt sew_d
    slanet slanext speecht5 squeezebert superglue swiftformer swin2sr swinv2 table_transformer
    tapas timesformer trocr tvp vilt visual_bert vitdet vits wavlm wavtokenizer xglm xlm xlnet
    yoso zoedepth
""")

# Those below go through the interface.

# Refused by name: the model passes an option that regard does not serve, learned sinks that differ
# from query to query.
REFUSED = _names("""
    inkling2 inkling2_loop
""")

# Cannot be built here: they need timm, Pillow or another package beside transformers.
NEEDS_A_PACKAGE = _names("""
    conditional_detr deformable_detr detr edgetam maskformer pe_audio_video pe_video
""")

# Their configurations hold sizes that the few of SIZES do not make small.
STAYS_BIG = _names("""
    align blt clap deimv2 dia edgetam_video florence2 glm4v glm4v_moe glm_ocr hy_v4_vl janus
    kimi_linear neucodec pe_audio phi4_multimodal pp_doclayout_v3 pp_doclayout_v4 pp_formulanet
    pp_ocrv5_server_rec qwen3_omni_moe roc_bert rt_detr rt_detr_v2 sam2 sam2_video sam3_tracker
    sam3_tracker_video vjepa2 xcodec2
""")

# Not tried: models of several parts, or whose configurations or inputs need more than a line or two
# in a table.
NEEDS_MORE = _names("""
    altclip apertus1p5 aria audio_spectrogram_transformer audioflamingo3 bailing_hybrid
    bert_generation blip_2 canary chameleon clipseg cohere_asr cohere_compass cosmos3_edge csm
    d_fine dbrx decision_transformer deepseek_ocr2 diffusion_gemma dory dots3_note efficientloftr
    embedding_gemma2 eomt eomt_dinov3 ernie4_5_vl_moe esm esmc esmfold2 evolla exaone4_5 falcon_h1
    fun_asr_nano gemma4 gemma4_unified glm5_next glm_image glmasr gradium_phonon_tts
    granite4_vision granite_docling granite_speech5 granitemoehybrid higgs_audio_v2 hunyuan_vl
    idefics idefics2 idefics3 informer instructblip instructblipvideo internvl kimi_k25 kosmos2
    kosmos2_5 kyutai_speech_to_text lasr lfm3_vl lightglue lw_detr metaclip_2 mimi minicpm_ocr
    minicpmv4_6 minicpmv4_7 mistral_large4 molmo2 moonshine_streaming moss_transcribe_diarize
    muse_glimmer muse_glimmer_assistant muse_spark musicgen musicgen_melody nemotron3_5_transcribe
    nemotron3_diarization nemotron_asr_streaming neomme omniasr ovis2 owlv2 owlvit paddleocr_vl
    patchtsmixer patchtst pocket_tts pocket_tts_audio_tokenizer pp_doclayout_v2
    pp_ocrv5_mobile_rec pp_ocrv6_small_rec qianfan_ocr qwen2_5_omni qwen2_audio qwen2_vl qwen3_asr
    qwen3_vl qwen3_vl_moe qwen4_exp recurrent_gemma rf_detr sam sam3 sam3_lite_text sam_hq siglip2
    smolvlm step3p7 time_series_transformer timesfm timesfm2_5 tipsv2 unlimited_ocr video_llama_3
    videomt videoprism vitpose_backbone voxtral voxtral_realtime x_clip xmod zamba zamba2 zaya
""")
