"""Catalog of model families: the naming rules of each model type.

To support a family, add a row to `FAMILIES`, with a test as described in `docs/howto/add_architecture.md`. If neither
the model nor a part of the model has a row, users must name the roles, because roles are never guessed.
"""

from __future__ import annotations

import re

from ailora.roles import naming_rules
from ailora.roles.naming_rules import Rule

Rules = tuple[Rule, ...]


def _assign(rules: Rules, model_types: str) -> dict[str, Rules]:
    return dict.fromkeys(model_types.split(), rules)


#: config.model_type -> rules. A composite model (CLIP, a multimodal language model) has a row for each part with a
#: separate configuration. Module names do not prove a role, so each row has a test of the family's behaviour.
FAMILIES: dict[str, Rules] = {
    **_assign(
        naming_rules.SEPARATE,
        """
        afmoe aimv2_text_model aimv2_vision_model altclip_vision_model apertus arcee aria_text
        audio-spectrogram-transformer audioflamingo3_encoder bamba bart beam beit biogpt bitnet blenderbot
        blenderbot-small blt_local_encoder blt_patcher canary_decoder chameleon chinese_clip_vision_model
        clip_text_model clip_vision_model clipseg_text_model clipseg_vision_model clvp_decoder cohere cohere2
        cohere2_moe cohere_asr cosmos3_edge_text cosmos3_edge_vision cwm data2vec-audio deformable_detr deit detr
        diffllama dinov2 dinov2_with_registers dinov3_vit doge dots1 embedding_gemma2_text emu3_text_model ernie4_5
        ernie4_5_moe esmc eurobert exaone4 exaone_moe falcon_h1 flex_olmo flint fsmt gemma gemma2 gemma3_text
        gemma3n_text gemma4_text gemma4_unified_text git_vision_model glm4_moe glm4v_moe_text glmasr_encoder gpt_oss
        gptj gradium_phonon_tts granite granite_docling_text granite_docling_vision granite_swa granitemoe
        granitemoe_swa granitemoehybrid granitemoeshared groupvit_text_model groupvit_vision_model gte helium
        higgs_audio_v2 hrm_text hubert hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text hunyuan_vl_vision hy_v3
        hyperclovax idefics idefics2_perceiver idefics2_vision idefics3_vision idefics_vision ijepa informer internlm3
        internvl_vision iquestcoder jais2 jamba janus_vision_model jina_embeddings_v3 kolibri1 kosmos_2_5_text_model
        kosmos_2_text_model kosmos_2_vision_model laguna lasr_encoder lfm2 lfm2_moe lfm3 lfm3_vl_vision llama
        llama4_text llama4_vision_model m2m_100 marian mask2former mbart mellum metaclip_2_text_model
        metaclip_2_vision_model mimi mimi_encoder mimo_v2_flash minimax_m2 minimax_m3_vl_text minimax_m3_vl_vision
        ministral ministral3 mistral mixtral mlcd_vision_model mllama_text_model mllama_vision_model molmo2_text
        moss_transcribe_diarize_audio muse_glimmer_text muse_spark_text mvp nanochat nemotron nllb-moe nomic_bert olmo
        olmo2 olmo3 olmo_hybrid olmoe openai_privacy_filter opt ovis2_vision owlv2_text_model owlv2_vision_model
        owlvit_text_model owlvit_vision_model parakeet_encoder patchtst pe_audio_encoder pegasus phi phimoe pixio
        pixtral plbart pocket_tts qianfan_ocr_vision qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_audio_encoder
        qwen2_moe qwen2_vl_text qwen3 qwen3_asr_encoder qwen3_moe qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text
        radio rf_detr_dinov2 sam3_detr_decoder sam3_detr_encoder sam3_lite_text_detr_decoder sam3_lite_text_detr_encoder
        sam3_vit_model seed_oss segformer sew siglip2_text_model siglip2_vision_model siglip_text_model
        siglip_vision_model smollm3 smolvlm_vision solar_open speech_to_text speecht5 stablelm starcoder2 step3p5_vision
        t5_gemma_module t5gemma2_decoder t5gemma2_text table-transformer time_series_transformer timesfm2_5
        tipsv2_text_model tipsv2_vision_model ultrabert unispeech unispeech-sat vaultgemma vit vit_mae vit_msn vivit
        voxtral_encoder voxtral_realtime_encoder wav2vec2 whisper xclip xclip_text_model xclip_vision_model xglm
        """,
    ),
    **_assign(
        naming_rules.BERT,
        """
        align_text_model altclip_text_model bert bert-generation big_bird blip_text_model bridgetower
        bridgetower_text_model bros camembert canine chinese_clip_text_model clap_audio_model data2vec-text
        data2vec-vision donut-swin dpr dpt electra ernie esm flava_image_model flava_multimodal_model flava_text_model
        git glpn layoutlm layoutlmv3 lilt longformer luke markuplm maskformer-swin megatron-bert mobilebert mobilevit
        perceiver pvt rembert roberta roberta-prelayernorm roc_bert roformer splinter swin2sr swinv2 tapas videomae vilt
        visual_bert xlm-roberta xlm-roberta-xl xmod yolos yoso
        """,
    ),
    **_assign(
        naming_rules.VISION_QKV,
        """
        blip_2_vision_model blip_vision_model cohere_compass_vision glm4v_moe_vision glm4v_vision glm5_next_vision
        glm_image_vision glm_ocr_vision got_ocr2_vision hiera instructblip_vision_model instructblipvideo_vision_model
        mgp-str qwen2_5_vl_vision qwen2_vl_vision qwen3_5_moe_vision qwen3_5_vision qwen3_vl_moe_vision qwen3_vl_vision
        qwen4_exp_vision sam_hq_vision_model sam_vision_model unlimited_ocr_sam_vision_model vitdet
        """,
    ),
    **_assign(
        naming_rules.LATENT,
        """
        axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa hy_v4 longcat_flash minicpm3 mistral4 youtu
        """,
    ),
    **_assign(
        naming_rules.GLM,
        """
        dia_decoder dia_encoder glm glm4 glm4v_text glm_image_text glm_ocr_text
        """,
    ),
    **_assign(
        naming_rules.T5,
        """
        longt5 mt5 switch_transformers t5 udop umt5
        """,
    ),
    **_assign(
        naming_rules.NEOX,
        """
        bloom gpt_neox gpt_neox_japanese persimmon
        """,
    ),
    **_assign(
        naming_rules.GPT2,
        """
        decision_transformer gpt2 imagegpt openai-gpt
        """,
    ),
    "albert": naming_rules.ALBERT,
    "pvt_v2": naming_rules.ALBERT,
    "vjepa2": naming_rules.ALBERT,
    "blip_2_qformer": naming_rules.QFORMER,
    "instructblip_qformer": naming_rules.QFORMER,
    "instructblipvideo_qformer": naming_rules.QFORMER,
    "fastspeech2_conformer": naming_rules.CONFORMER,
    "wav2vec2-bert": naming_rules.CONFORMER,
    "wav2vec2-conformer": naming_rules.CONFORMER,
    "gemma4_vision": naming_rules.WRAPPED,
    "kyutai_speech_to_text": naming_rules.WRAPPED,
    "moshi": naming_rules.WRAPPED,
    "moonshine": naming_rules.ATTENTION_ONLY,
    "timesfm": naming_rules.ATTENTION_ONLY,
    "zamba2": naming_rules.ATTENTION_ONLY,
    "qwen3_5_moe_text": naming_rules.GATED_QUERY,
    "qwen3_5_text": naming_rules.GATED_QUERY,
    "qwen3_next": naming_rules.GATED_QUERY,
    "deberta-v2": naming_rules.DEBERTA_V2,
    "sew-d": naming_rules.DEBERTA_V2,
    "flaubert": naming_rules.XLM,
    "xlm": naming_rules.XLM,
    "phi3": naming_rules.PHI3,
    "phi4_multimodal": naming_rules.PHI4,
    "codegen": naming_rules.CODEGEN,
    "cpmant": naming_rules.CPMANT,
    "ctrl": naming_rules.CTRL,
    "cvt": naming_rules.CVT,
    "dbrx": naming_rules.DBRX,
    "deberta": naming_rules.DEBERTA,
    "distilbert": naming_rules.DISTILBERT,
    "falcon": naming_rules.FALCON,
    "glm5_next_text": naming_rules.GLM5_NEXT,
    "gpt_bigcode": naming_rules.BIGCODE,
    "gpt_neo": naming_rules.GPT_NEO,
    "lxmert": naming_rules.LXMERT,
    "minimax": naming_rules.MINIMAX,
    "modernbert": naming_rules.MODERNBERT,
    "modernbert-decoder": naming_rules.MODERNBERT_DECODER,
    "mpnet": naming_rules.MPNET,
    "mpt": naming_rules.MPT,
    "nemotron_h": naming_rules.NEMOTRON_H,
    "prophetnet": naming_rules.PROPHETNET,
    "recurrent_gemma": naming_rules.RECURRENT_GEMMA,
    "timesformer": naming_rules.TIMESFORMER,
    "bigbird_pegasus": naming_rules.BIGBIRD_PEGASUS,
    "led": naming_rules.LED,
    "seamless_m4t": naming_rules.SEAMLESS,
    "seamless_m4t_v2": naming_rules.SEAMLESS,
    "swin": naming_rules.SWIN,
    # transformers has no modeling file for this family, only remote code.
    "chatglm": naming_rules.CHATGLM,
}


def _exclude(reason: str, model_types: str) -> dict[str, str]:
    return dict.fromkeys(model_types.split(), reason)


#: config.model_type -> reason why the family has no row, for error messages and `docs/architectures.md`.
LEFT_OUT: dict[str, str] = {
    **_exclude("state-space or recurrent layers without query and value", "falcon_mamba mamba mamba2 rwkv xlstm"),
    **_exclude("mixes positions without attention", "fnet patchtsmixer poolformer"),
    **_exclude(
        "convolutions without attention",
        """
        bit convnext convnextv2 dac dinov3_convnext efficientnet encodec focalnet hgnet_v2 mobilenet_v1 mobilenet_v2
        mobilevitv2 pp_lcnet pp_lcnet_v3 pp_lcnet_v4 regnet resnet rt_detr_resnet superpoint textnet univnet uvdoc
        uvdoc_backbone vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
        vibevoice_acoustic_tokenizer_encoder
        """,
    ),
    **_exclude("linear attention and full attention have the same module names", "bailing_hybrid kimi_linear"),
    **_exclude("approximate attention, in which a query affects several positions", "mra nystromformer reformer"),
    **_exclude("values pass through a convolution before attention", "inkling_text inkling2_text"),
    **_exclude("separate queries for content and for position", "conditional_detr dab-detr"),
    "convbert": "half of the heads are convolutions, with kernels computed from the query",
    "deepseek_v4": "a single projection computes keys and values",
    "ibert": "PEFT does not adapt the family's quantized layers",
    "jetmoe": "experts compute the queries",
    "levit": "projections are normalised before they are split",
    "nemotron_asr_streaming_encoder": "attention also reads a cache of the stream",
    "pegasus_x": "global and local tokens pass through the same projections separately",
    "squeezebert": "projections are convolutions",
    "vits": "separate values for relative positions",
    "wavlm": "a function reads the weights of the projections directly, past any adapter",
    "xlnet": "projections are bare parameters, which PEFT does not adapt",
    "zaya": "each value combines two positions",
}


def find_rule(model_type: str, module: str) -> Rule | None:
    """Return the family's first rule whose pattern matches the end of a module's name, or None."""
    return next((rule for rule in FAMILIES.get(model_type, ()) if ends_with(rule.pattern, module)), None)


def ends_with(pattern: str, module: str) -> bool:
    """Return whether the last components of a module's name match `pattern`."""
    return re.search(rf"(?:^|\.)(?:{pattern})$", module) is not None
