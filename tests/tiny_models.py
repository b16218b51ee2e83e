"""Tiny models of the model types that transformers' `AutoModel` knows, for tests of attention projections.

A model type's default configuration is shrunk by the names of its sizes, in all sub-configurations; `TINY` holds what
a type needs beyond that. The sizes differ from one another (width 32, feed-forward 48, 4 heads of 8, 2 heads of keys
and values), so that a wrong split of a weight shows in its shape.
"""

# ruff: noqa: E501 (rows of data)

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

BATCH, POSITIONS, LAYERS = 2, 6, 2
# Tokens that stand for images and the like get ids from here on; texts are drawn from below.
FIRST_SPECIAL = 64

_SIZES = {
    32: """
        hidden_size d_model n_embd dim embed_dim hidden_dim emb_dim encoder_hidden_size out_hidden_size output_dim
        projection_dim word_embed_proj_dim embedding_size decoder_hidden_size cross_attention_hidden_size
        text_hidden_size audio_hidden_size true_hidden_size intra_bottleneck_size pooler_hidden_size project_dim
        backbone_hidden_size hidden_size_global lru_width embedding_dim image_text_hidden_size projection_hidden_size
        encoder_hidden_dim projector_input_dim projector_output_dim vision_output_dim output_hidden_size attention_hidden_size
        pooler_output_size hidden_size_per_layer_input fpn_hidden_size projection_size projection_hidden_dim
        mask_feature_size fusion_hidden_size decoder_hidden_dim output_proj_dims condition_dim speaker_embedding_dim
        adapter_out_dim lang_embed_dim unit_embed_dim spkr_embed_dim patch_embed_hidden_size mit_hidden_size
        pred_hidden_size input_embedding_size output_embedding_size d_latents mask_dim classifier_proj_size
        descriptor_dim memory_attention_hidden_size memory_encoder_hidden_size mask_downsampler_embed_dim
        memory_fuser_embed_dim patch_embeds_hidden_size vit_dim cross_hidden_size prompt_mid_dim xvector_output_dim
        prediction_head_size image_token_embed_dim text_projection_in_dim text_projection_out_dim class_embed_dim
        task_encoder_hidden_dim image_size pretrain_image_size spec_size""",
    48: """
        intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff dim_ff moe_intermediate_size n_inner d_inner
        ffn_hidden_size mlp_dim dim_feedforward feed_forward_size shared_expert_intermediate_size
        shared_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size intermediate_size_mlp
        encoder_feedforward_dim decoder_intermediate_size mit_intermediate_size dense_intermediate_size
        shared_experts_intermediate_size share_expert_dim moe_hidden_size encoder_dim_feedforward
        decoder_dim_feedforward speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim
        projector_hidden_size projection_intermediate_dim projection_intermediate_size prompt_intermediate_size
        memory_attention_feed_forward_hidden_size memory_attention_mlp_hidden_size alignment_intermediate_size
        memory_fuser_intermediate_dim iou_head_hidden_dim encoder_linear_units decoder_linear_units""",
    4: """
        num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
        num_encoder_attention_heads num_decoder_attention_heads decoder_num_attention_heads encoder_num_attention_heads
        cross_num_attention_heads conf_num_attention_heads speech_encoder_attention_heads t2u_encoder_attention_heads
        t2u_decoder_attention_heads swa_num_attention_heads mit_num_attention_heads prompt_num_attention_heads
        pred_num_attention_heads decoder_num_heads decoder_self_attention_heads decoder_cross_attention_heads
        num_sliding_attention_heads linear_num_value_heads linear_num_heads resampler_n_heads index_n_heads mamba_n_heads mamba_num_heads
        num_self_attention_heads num_cross_attention_heads num_experts num_local_experts n_routed_experts
        moe_num_experts expert_capacity qk_rope_head_dim num_latents latent_query_num num_query_tokens num_landmarks
        segment_means_seq_len adapter_rank laurel_rank""",
    2: """
        num_key_value_heads num_kv_heads kv_n_heads encoder_num_key_value_heads decoder_num_key_value_heads
        cross_num_key_value_heads swa_num_key_value_heads num_key_value_attention_heads linear_num_key_heads
        mamba_n_groups mamba_ngroups n_groups num_hidden_layers n_layer n_layers num_layers encoder_layers
        decoder_layers layers depth num_encoder_layers num_decoder_layers decoder_num_hidden_layers
        encoder_num_hidden_layers decoder_num_layers conf_num_hidden_layers speech_encoder_layers t2u_encoder_layers
        t2u_decoder_layers mit_num_hidden_layers l_layers r_layers x_layers num_layers_per_stack
        num_self_attends_per_block num_attention_layers num_global_layers pred_num_hidden_layers num_pooler_layers
        resampler_depth memory_attention_num_layers perceiver_resampler_num_layers text_encoder_num_layers
        num_auxiliary_layers num_spatial_layers num_temporal_layers num_timestamp_prediction_layers
        num_experts_per_tok num_experts_per_token moe_top_k moe_topk moe_k top_k_experts""",
    1: "first_k_dense_replace n_group topk_group num_expert_group num_dense_layers",
    8: """
        head_dim d_kv d_head dim_head attention_head_dim attention_head_size kv_channels qk_nope_head_dim v_head_dim
        swa_head_dim cross_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim
        mamba_d_state ssm_state_size state_size resampler_head_dim mamba_dt_rank time_step_rank chunk_size
        mamba_chunk_size global_head_dim num_queries num_conv_pos_embeddings codebook_dim patch_size""",
    12: "qk_head_dim",
    16: """
        q_lora_rank kv_lora_rank o_lora_rank num_mel_bins input_feat_per_channel conv_channels input_feat_size
        codebook_size codevector_dim proj_codevector_dim num_codevectors_per_group embedding_rank num_embeddings
        mamba_d_head mamba_head_dim mamba_headdim""",
    64: """
        max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions
        max_encoder_position_embeddings max_decoder_position_embeddings sliding_window local_attention
        attention_window_size original_max_position_embeddings max_speech_positions max_text_positions
        sliding_window_size block_size context_length max_2d_position_embeddings t2u_max_position_embeddings max_ep_len
        index_topk model_max_length keep_window_size max_pos_emb local_attention_window_len max_length""",
    99: """
        vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size entity_vocab_size vocab_size_per_layer_input
        text_vocab_size char_vocab_size t2u_vocab_size unit_hifi_gan_vocab_size input_vocab_size output_vocab_size
        audio_vocab_size text_encoder_vocab_size unpadded_vocab_size shape_vocab_size pronunciation_vocab_size
        codebook_vocab_size vision_vocab_size encoder_hash_byte_group_vocab num_bpe_labels""",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
# Sizes that grow from stage to stage, as long as there are stages.
_STAGES: dict[str, tuple[int, ...]] = {
    "depths": (1, 1, 2, 1),
    "num_heads": (2, 4, 4, 8),
    "num_attention_heads": (2, 4, 4, 8),
    "hidden_sizes": (16, 32, 64, 128),
    "embed_dims": (16, 32, 64, 128),
    "patch_size": (8,),
    "image_size": (32,),
}
_TOKEN = re.compile(r"(_token_id|_token_index|_id|_ids|_index)$")


def _shrink(config: PreTrainedConfig, ids: dict[int, int]) -> None:  # noqa: PLR0912 (a row for each kind of setting)
    """Set the sizes of a configuration and of those in it by their names; `ids` are the special tokens so far."""
    values = dict(vars(config))
    depth = next((values[n] for n in _LAYER_COUNTS if isinstance(values.get(n), int)), 0)
    kinds = [len(set(map(str, v))) for v in values.values() if isinstance(v, list | tuple) and len(v) == depth]
    layers = max([LAYERS, *kinds]) if depth > 4 else LAYERS
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            _shrink(value, ids)
        elif name == "head_dim" and value is None:
            setattr(config, name, 8)
        elif name.startswith("_") or isinstance(value, bool | str | None):
            continue
        elif isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)
        elif isinstance(value, list | tuple):
            if name in _STAGES:
                setattr(config, name, type(value)((list(_STAGES[name]) * len(value))[: len(value)]))
            elif len(value) == depth > layers:
                setattr(config, name, _cut(value, layers))
        elif name in _LAYER_COUNTS and isinstance(value, int):
            setattr(config, name, layers)
        elif name in SIZES and isinstance(value, int) and value > 0:
            setattr(config, name, SIZES[name])
        elif _TOKEN.search(name) and isinstance(value, int) and value >= FIRST_SPECIAL:
            setattr(config, name, ids.setdefault(value, FIRST_SPECIAL + len(ids) % 30))
        elif name == "rope_parameters" and isinstance(value, dict):
            setattr(config, name, _shrink_rope(value, "mrope_section" in config.ignore_keys_at_rope_validation))
    if values.get("kv_lora_rank"):
        # Latent attention: as many heads of keys as of queries, and rotary positions in a part of each head.
        config.num_key_value_heads = 4
        if values.get("qk_rope_head_dim") and "head_dim" in values:
            config.head_dim = 4


def _cut(values: list[Any] | tuple[Any, ...], layers: int) -> list[Any] | tuple[Any, ...]:
    """As many values as layers, with each kind of layer among them."""
    kinds = list({str(v): v for v in values}.values())
    return type(values)((kinds + [kinds[-1]] * layers)[:layers])


def _shrink_rope(rope: dict[str, Any], sections: bool) -> dict[str, Any]:
    """The same for the parameters of rotary positions, which may be given by kind of layer."""
    small = {name: _shrink_rope(value, False) if isinstance(value, dict) else value for name, value in rope.items()}
    if sections or "mrope_section" in small:
        small |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    return small


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A small configuration of a model type."""
    config = CONFIG_MAPPING[model_type]()
    _shrink(config, {})
    for path, value in TINY.get(model_type, {}).items():
        if path.startswith("@"):
            continue
        *parents, name = path.split(".")
        part = config
        for parent in parents:
            part = part[parent] if isinstance(part, dict) else getattr(part, parent)
        if isinstance(part, dict):
            part[name] = value
        elif isinstance(value, dict) and "model_type" in value:
            setattr(part, name, CONFIG_MAPPING[value["model_type"]](**value))
        else:
            setattr(part, name, value)
    return config


def tiny_model(model_type: str) -> nn.Module:
    """A small model with weights that are far from a fresh initialisation, in eval mode."""
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(model_type), attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
    return model


def tiny_inputs(model_type: str) -> dict[str, Tensor]:
    """Inputs that a small model runs on: two examples, all positions attended."""
    config, generator = tiny_config(model_type), torch.Generator().manual_seed(2)
    wanted = inspect.signature(_model_class(type(config)).forward).parameters
    given = {name[1:]: value for name, value in TINY.get(model_type, {}).items() if name.startswith("@")}

    def ids(*shape: int) -> Tensor:
        return torch.randint(5, 60, shape, generator=generator)

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs: dict[str, Tensor] = {n: ids(BATCH, POSITIONS) for n in ("input_ids", "decoder_input_ids") if n in wanted}
    images = given.pop("images", 0)
    vision = getattr(config, "vision_config", config)
    channels = next((c for n in ("num_channels", "in_channels") if isinstance(c := getattr(vision, n, None), int)), 3)
    grid = next((n for n in ("image_grid_thw", "grid_thw") if n in wanted), None)
    if grid and "input_features" not in wanted:
        # Patches of two images of 4 by 4, one after the other, each flattened.
        features = channels * getattr(vision, "temporal_patch_size", 1) * 64
        inputs["pixel_values" if "pixel_values" in wanted else "hidden_states"] = real(BATCH * 16, features)
        inputs[grid] = torch.tensor([[1, 4, 4]] * BATCH)
        images = images or 16 // getattr(vision, "spatial_merge_size", 2) ** 2
    elif "pixel_values" in wanted:
        size = getattr(vision, "image_size", 64)
        height, width = (size, size) if isinstance(size, int) else size
        inputs["pixel_values"] = real(BATCH, channels, height, width)
    if "input_values" in wanted:
        inputs["input_values"] = real(BATCH, 800)
    if "input_features" in wanted:
        inputs["input_features"] = real(BATCH, 16, 128)
    if "bbox" in wanted:
        inputs["bbox"] = torch.tensor([1, 2, 9, 12]).expand(BATCH, POSITIONS, 4).clone()
    if images and "input_ids" in inputs:
        token = next(t for n in ("image_token_id", "image_token_index") if (t := getattr(config, n, None)) is not None)
        inputs["input_ids"] = torch.cat([ids(BATCH, 2), torch.full((BATCH, images), token), ids(BATCH, 3)], 1)
        if "mm_token_type_ids" in wanted:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == token).int()
    for name, value in given.items():
        if value is None:
            inputs.pop(name, None)
        elif isinstance(value, tuple):
            inputs[name] = real(*value)
        else:
            inputs[name] = torch.as_tensor(value)
    return inputs


@cache
def _model_class(config: type[PreTrainedConfig]) -> type[nn.Module]:
    found = AutoModel._model_mapping[config]
    return found[0] if isinstance(found, tuple) else found


# TABLE
def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


def _each(model_types: str, **values: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(model_types.split(), values)


# A video, a sequence of crops of an image, a mel spectrogram by time and band.
_VIDEO, _CROPS, _MEL = (BATCH, 4, 3, 32, 32), (BATCH, 1, 3, 32, 32), (BATCH, 128, 16)
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
_SWIN_SIZES = {"image_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
_SWIN = _SWIN_SIZES | {"num_layers": 2, "hidden_size": 64}
_FORECAST = {
    "prediction_length": 4,
    "context_length": 8,
    "num_time_features": 1,
    "feature_size": 10,
    "@past_values": (BATCH, 15),
    "@past_time_features": (BATCH, 15, 1),
    "@past_observed_mask": _ones(BATCH, 15).float(),
    "@future_values": (BATCH, 4),
    "@future_time_features": (BATCH, 4, 1),
}
_QUERIES = {"image_token_index": 64, "image_token_id": 64, "@images": 4}
_SIGLIP2 = {
    "@pixel_values": (BATCH, 16, 192),
    "@pixel_attention_mask": _ones(BATCH, 16),
    "@spatial_shapes": [[4, 4]] * BATCH,
}

_OVERRIDES: dict[str, dict[str, Any]] = {
    **{name: {"@images": 4} for name in ["aya_vision", "cohere2_vision", "internvl", "qianfan_ocr"]},
    **{name: {"@images": 16} for name in ["deepseek_vl", "janus", "llava", "ovis2", "paligemma"]},
    **{name: {"@images": 1} for name in ["got_ocr2", "step3p7"]},
    "audioflamingo3_encoder": {"@input_features_mask": _ones(BATCH, 128)},
    **dict.fromkeys(["autoformer", "informer", "time_series_transformer"], _FORECAST),
    **{
        name: {"@input_features": _MEL}
        for name in [
            "canary",
            "cohere_asr",
            "parakeet_ctc",
            "parakeet_encoder",
            "parakeet_rnnt",
            "parakeet_tdt",
            "lasr_ctc",
            "lasr_encoder",
            "speech_to_text",
            "univnet",
            "nemotron3_5_asr",
            "nemotron_asr_streaming",
            "nemotron_asr_streaming_encoder",
            "nemotron3_5_transcribe_asr_audio",
            "nemotron3_5_transcribe_audio",
            "nemotron3_diarization",
            "nemotron3_diarization_audio",
            "nemo_speechlm",
        ]
    },
    **{name: {"@input_features": None} for name in ["embedding_gemma2", "gemma4", "gemma4_unified"]},
    **{
        name: {"backbone_config": _RESNET, "@pixel_values": (BATCH, 3, 96, 96)}
        for name in ["detr", "conditional_detr", "dab-detr", "deformable_detr", "table-transformer"]
    },
    **dict.fromkeys(["swin", "donut-swin", "maskformer-swin"], _SWIN),
    **{
        name: {"@pixel_values": _CROPS, "@images": 4}
        for name in ["idefics3", "smolvlm", "modernvbert", "ultravbert", "granite_docling"]
    },
    **{
        name: {"@image_sizes": [[32, 32]] * BATCH, "@images": 4}
        for name in ["mistral3", "lighton_ocr", "mistral_large4"]
    },
    **{name: {"rotary_dim": 4} for name in ["codegen", "gptj"]},
    **{name: {"@input_values": (BATCH, 1, 800)} for name in ["dac", "encodec"]},
    "align": {"projection_dim": 640},
    "audio-spectrogram-transformer": {"@input_values": (BATCH, 64, 16)},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "blip-2": _QUERIES,
    "instructblip": _QUERIES | {"@qformer_input_ids": [[5, 6, 7]] * BATCH},
    "instructblipvideo": _QUERIES | {"@qformer_input_ids": [[5, 6, 7]] * BATCH, "@pixel_values": _VIDEO, "@images": 16},
    "blip_2_qformer": {"@query_embeds": (BATCH, 4, 32), "@encoder_hidden_states": (BATCH, 5, 32)},
    # Texts alone: their images and sounds have towers that are model types of their own.
    **{
        name: {"@pixel_values": None, "@image_grid_thw": None}
        for name in ["paddleocr_vl", "ernie4_5_vl_moe", "lfm2_vl", "video_llama_3", "t5gemma2", "florence2"]
    },
    **{
        name: {"@input_features": None}
        for name in ["voxtral", "audioflamingo3", "musicflamingo", "glmasr", "fun_asr_nano"]
    },
    "blt": {"use_cache": False},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "esmc": {"num_key_value_heads": 4},
    "hrm_text": {"use_cache": False},
    "bridgetower": {"hidden_size": 128, "text_config.hidden_size": 128, "vision_config.hidden_size": 128},
    "bros": {"dim_bbox_projection": 8},
    "chameleon": {"vocabulary_map": {"<image>": 64, "IMGIMGBSZ": 65, "IMGIMGAZ": 66}, "@pixel_values": None},
    "clap": {"@input_features": (BATCH, 1, 64, 16)},
    "clvp": {"@input_features": (BATCH, 80, 16)},
    "dbrx": {"attn_config.clip_qkv": 1e3, "attn_config.rope_theta": 10000.0},
    "decision_transformer": {
        "@input_ids": None,
        "@states": (BATCH, 3, 17),
        "@actions": (BATCH, 3, 4),
        "@rewards": (BATCH, 3, 1),
        "@returns_to_go": (BATCH, 3, 1),
        "@timesteps": [[0, 1, 2]] * BATCH,
    },
    "dia": {"@decoder_input_ids": torch.arange(BATCH * POSITIONS * 9).view(BATCH, POSITIONS, 9) % 60},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 64, "<image>": 65}, "@pixel_values": None},
    "esm": {"vocab_size": 99, "pad_token_id": 1, "mask_token_id": 64},
    "flava": {"@pixel_values": (BATCH, 3, 32, 32)},
    "fuyu": {"@pixel_values": (BATCH, 4, 192), "@images": 4},
    "gemma3": {"mm_tokens_per_image": 4, "@images": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "granite_speech": {"@input_features": None},
    "granite_speech_plus": {"encoder_config.context_size": 16},
    "granite_speech5_ctc": {"@input_features": (BATCH, 16, 64)},
    "granite_speech5_encoder": {"@input_features": (BATCH, 16, 64)},
    "idefics": {"@pixel_values": _CROPS, "@image_attention_mask": _ones(BATCH, POSITIONS, 1)},
    "idefics2": {"@pixel_values": _CROPS, "@images": 64},
    "kosmos-2": {"@image_embeds_position_mask": [[0, 1, 1, 1, 1, 0]] * BATCH},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 32, "@pixel_values": (BATCH, 3, 32, 32)},
    "led": {"attention_window": [4, 4]},
    "longformer": {"attention_window": [4, 4]},
    "levit": {
        "image_size": 64,
        "patch_size": 16,
        "key_dim": (8, 8, 8),
        "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48, "intermediate_size": 56},
    "llama4": {"vision_config.intermediate_size": 128, "@images": 4},
    "llava_next": {
        "image_grid_pinpoints": [[32, 64]],
        "@pixel_values": (BATCH, 3, 3, 32, 32),
        "@image_sizes": [[32, 64]] * BATCH,
        "@images": 52,
    },
    "llava_next_video": {
        "image_grid_pinpoints": [[32, 64]],
        "@pixel_values": (BATCH, 3, 3, 32, 32),
        "@image_sizes": [[32, 64]] * BATCH,
        "@images": 52,
    },
    "llava_onevision": {
        "image_grid_pinpoints": [[32, 64]],
        "@pixel_values": (BATCH, 3, 3, 32, 32),
        "@image_sizes": [[32, 64]] * BATCH,
        "@images": 52,
    },
    "lxmert": {"@visual_feats": (BATCH, 3, 2048), "@visual_pos": (BATCH, 3, 4)},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "mimi": {"codebook_dim": 256, "upsample_groups": 32, "@input_values": (BATCH, 1, 8000)},
    "mimi_encoder": {"@input_values": (BATCH, 1, 8000)},
    **{name: {"@input_values": (BATCH, 4000)} for name in ["sew", "sew-d"]},
    **{name: {"image_size": 128, "@pixel_values": (BATCH, 3, 128, 128)} for name in ["mobilevit", "pvt", "pvt_v2"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "mimi_decoder": {"upsample_groups": 32},
    "mllama": {
        "text_config.cross_attention_layers": [1],
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.vision_output_dim": 96,
        "@pixel_values": (BATCH, 1, 4, 3, 32, 32),
        "@aspect_ratio_ids": _ones(BATCH, 1),
        "@aspect_ratio_mask": _ones(BATCH, 1, 4),
        "@cross_attention_mask": _ones(BATCH, POSITIONS, 1, 4),
    },
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4, "@input_values": (BATCH, 4000)},
    "nemotron": {"num_key_value_heads": 2},
    "patchtst": {"@past_values": (BATCH, 64, 1)},
    "patchtsmixer": {"@past_values": (BATCH, 64, 2)},
    **{name: {"@input_values": (BATCH, 1, 16000)} for name in ["pe_audio", "pe_audio_encoder"]},
    "perceiver": {"@inputs": (BATCH, 6, 32)},
    "qwen2_audio": {"@input_features": None},
    "qwen2_5_omni_thinker": {"@pixel_values": None, "@image_grid_thw": None, "@input_features": None},
    "qwen3_omni_moe_thinker": {"@pixel_values": None, "@image_grid_thw": None, "@input_features": None},
    "qwen3_asr": {"@input_features": (BATCH, 16, 100), "@input_features_mask": _ones(BATCH, 100)},
    "qwen3_asr_encoder": {"@input_features": (BATCH, 16, 100), "@input_features_mask": _ones(BATCH, 100)},
    "fun_asr_nano_encoder": {"@input_features_mask": _ones(BATCH, 16)},
    "radio": {"patch_dim": 192},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 2,
        "lsh_attn_chunk_length": 2,
        "num_buckets": 4,
    },
    "sam": {"prompt_encoder_config.image_embedding_size": 4, "prompt_encoder_config.image_size": 32},
    "sam_hq": {"prompt_encoder_config.image_embedding_size": 4, "prompt_encoder_config.image_size": 32},
    "seamless_m4t": {"@input_features": (BATCH, 16, 160)},
    "seamless_m4t_v2": {"@input_features": (BATCH, 16, 160)},
    "wav2vec2-bert": {"@input_features": (BATCH, 16, 160)},
    "siglip2": _SIGLIP2 | {"vision_config.num_patches": 16},
    "siglip2_vision_model": _SIGLIP2 | {"num_patches": 16},
    "speecht5": {"@input_values": (BATCH, 6, 32), "@decoder_input_values": (BATCH, 6, 32)},
    "swinv2": _SWIN | {"pretrained_window_sizes": (0, 0)},
    "swin2sr": _SWIN | {"patch_size": 1, "image_size": 8, "@pixel_values": (BATCH, 3, 8, 8)},
    "timesformer": {"num_frames": 4, "@pixel_values": _VIDEO},
    "videomae": {"num_frames": 4, "@pixel_values": _VIDEO},
    "vivit": {"num_frames": 4, "tubelet_size": (2, 8, 8), "@pixel_values": _VIDEO},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4, "@pixel_values_videos": _VIDEO},
    "xclip": {"vision_config.num_frames": 4, "@pixel_values": _VIDEO},
    "video_llava": {"@images": 16, "@pixel_values": None, "@pixel_values_images": (BATCH, 3, 32, 32)},
    "vipllava": {"vision_feature_layer": (-2, -1), "@images": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "hybrid_layer_ids": [1],
        "layer_types": ["linear_attention", "hybrid"],
    },
    "kyutai_speech_to_text": {"@input_ids": torch.arange(BATCH * POSITIONS * 33).view(BATCH, POSITIONS, 33) % 60},
    "gemma4_vision": {
        "@pixel_values": (BATCH, 16, 192),
        "@pixel_position_ids": torch.tensor([[x, y] for x in range(4) for y in range(4)]).expand(BATCH, 16, 2),
    },
    "hunyuan_vl": {"@images": 8},
    "timesfm": {"@past_values": (BATCH, 256), "@past_values_padding": torch.zeros(BATCH, 256), "@freq": [[0]] * BATCH},
    "timesfm2_5": {"@past_values": (BATCH, 256)},
}

TINY: dict[str, dict[str, Any]] = {**_OVERRIDES}
