"""Roles in the families that the catalog knows, and what is said of models that it does not know."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import ailora
from ailora.roles import Attention, Role, find_unmatched
from tests.tiny_models import tiny_config

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TWO_STACKS = {
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "pad_token_id": 0,
}
TOWER = {**SIZES, "image_size": 16, "patch_size": 8}
#: per layer: query, key, value, output, up, down, and gate where there is one
PLAIN = {"query": 2, "key": 2, "value": 2, "output": 2, "up": 2, "down": 2}
GATED = PLAIN | {"gate": 2}
SEQ2SEQ = {"query": 6, "key": 6, "value": 6, "output": 6, "up": 4, "down": 4}
T5 = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
EXPECTED: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), (SIZES, GATED)),
    **dict.fromkeys(("phi", "bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2"), (SIZES, PLAIN)),
    "opt": ({**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, PLAIN),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "whisper"), (TWO_STACKS, SEQ2SEQ)),
    "clip": ({"text_config": SIZES, "vision_config": TOWER}, {role: 2 * n for role, n in PLAIN.items()}),
    "clip_text_model": (SIZES, PLAIN),
    "clip_vision_model": (TOWER, PLAIN),
    "vit": (TOWER, PLAIN),
    # Shared layers: one set of weights, however many layers use it.
    "albert": ({**SIZES, "embedding_size": 16}, dict.fromkeys(PLAIN, 1)),
    "distilbert": ({"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}, PLAIN),
    "t5": (T5, SEQ2SEQ),
    "mt5": ({**T5, "feed_forward_proj": "gated-gelu"}, SEQ2SEQ | {"gate": 4}),
}


def load_on_meta(model_type: str) -> nn.Module:
    with torch.device("meta"):
        return tf.AutoModel.from_config(tf.AutoConfig.for_model(model_type, **EXPECTED[model_type][0]))


@pytest.mark.parametrize("model_type", EXPECTED)
def test_the_roles_of_a_family(model_type: str) -> None:
    projections = ailora.find_projections(load_on_meta(model_type))
    assert Counter(p.role.value for p in projections) == EXPECTED[model_type][1]
    assert len({p.module for p in projections}) == len(projections)
    for p in projections:
        assert p.rows == ((0, p.out_features),)
        # CLIP itself has no projections: its towers have configurations of their own.
        assert p.rule.startswith(model_type)


@pytest.mark.parametrize("model_type", ["t5", "bart", "whisper"])
def test_self_and_cross_attention_are_told_apart(model_type: str) -> None:
    projections = ailora.find_projections(load_on_meta(model_type))
    queries = Counter(p.attention for p in projections if p.role == "query")
    assert queries == {Attention.SELF: 4, Attention.CROSS: 2}
    assert all("decoder" in p.module for p in projections if p.attention is Attention.CROSS)


def test_sizes_of_grouped_query_attention() -> None:
    config = tf.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=64)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    shapes = {(p.role.value, p.out_features, p.in_features) for p in ailora.find_projections(model)}
    assert {("query", 32, 32), ("value", 16, 32), ("gate", 48, 32), ("down", 32, 48)} <= shapes


def custom() -> nn.Module:
    block = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("wq", "wv", "mix")})
    return nn.ModuleDict({"blocks": nn.ModuleList([block])})


def test_an_unknown_model_lists_its_modules_and_shows_the_way() -> None:
    with pytest.raises(ailora.ModelError) as error:
        ailora.find_projections(custom())
    message = str(error.value)
    assert "ModuleDict without config.model_type" in message
    assert "blocks.*.wq  (8 x 8)" in message
    assert "role_names" in message


def test_roles_named_by_hand() -> None:
    found = ailora.find_projections(custom(), role_names={r"\.wq$": "query", r"\.wv$": "value"})
    assert [(p.module, p.role.value, p.rule) for p in found] == [
        ("blocks.0.wq", "query", r"role_names: \.wq$"),
        ("blocks.0.wv", "value", r"role_names: \.wv$"),
    ]


@pytest.mark.parametrize(
    ("role_names", "message"),
    [
        ({"wq(": "query"}, "not a regular expression"),
        ({"wx$": "query"}, "matches no linear module"),
        ({"wq$": "qery"}, "unknown role 'qery' .did you mean 'query'"),
    ],
)
def test_bad_role_names_are_refused(role_names: dict[str, str], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        ailora.find_projections(custom(), role_names=role_names)


def small(model_type: str) -> nn.Module:
    with torch.device("meta"):
        return tf.AutoModel.from_config(tiny_config(model_type))


@pytest.mark.parametrize(
    ("model_type", "towers"),
    [
        ("llava", {"language_model": "llama", "vision_tower": "clip_vision_model"}),
        ("qwen2_vl", {"language_model": "qwen2_vl_text", "visual": "qwen2_vl_vision"}),
        ("clip", {"text_model": "clip_text_model", "vision_model": "clip_vision_model"}),
    ],
)
def test_the_towers_of_a_multimodal_model_are_told_apart(model_type: str, towers: dict[str, str]) -> None:
    model = small(model_type)
    projections = ailora.find_projections(model)
    for tower, rule in towers.items():
        assert {p.rule for p in projections if p.module.startswith(tower)} == {rule}
        plan = ailora.make_plan(model, rank=2, modules=rf"^{tower}")
        assert all(a.projection.module.startswith(tower) for a in plan.adapters)
        assert plan.counts == {Role.QUERY: 2, Role.VALUE: 2}


def test_latent_attention_has_its_query_and_the_value_rows_of_its_latent() -> None:
    """DeepSeek-V3: 4 heads, in each a key without position of 8 rows, then a value of 8."""
    projections = [
        p for p in ailora.find_projections(small("deepseek_v3")) if p.module.startswith("layers.0.self_attn")
    ]
    by_role = {p.role: p for p in projections}
    assert by_role[Role.QUERY].module.endswith("q_b_proj")
    assert by_role[Role.VALUE].module == by_role[Role.KEY].module == "layers.0.self_attn.kv_b_proj"
    assert by_role[Role.VALUE].rows == ((8, 16), (24, 32), (40, 48), (56, 64))
    assert by_role[Role.VALUE].layout == "4 x (key 8 + value 8)"


def test_the_gate_in_a_querys_weight_is_no_query() -> None:
    by_role = {p.role: p for p in ailora.find_projections(small("qwen3_next")) if p.module.endswith("q_proj")}
    assert by_role[Role.QUERY].rows == ((0, 8), (16, 24), (32, 40), (48, 56))
    assert by_role[Role.GATE].rows == ((8, 16), (24, 32), (40, 48), (56, 64))


@pytest.mark.parametrize(
    ("model_type", "module", "reason"),
    [
        ("qwen3_next", "layers.0.linear_attn.in_proj_qkvz", "linear attention"),
        ("jamba", "layers.0.mamba.in_proj", "state space"),
        ("deepseek_v3", "layers.0.self_attn.kv_a_proj_with_mqa", "a down-projection of latent attention"),
        ("deepseek_v3", "layers.1.mlp.shared_experts.up_proj", "an expert"),
        ("bert", "pooler.dense", "a head"),
        ("siglip_vision_model", "head.attention", "rewrites the base weight"),
    ],
)
def test_what_is_left_alone_is_said(model_type: str, module: str, reason: str) -> None:
    model = small(model_type)
    found = {rest.module: rest.reason for rest in find_unmatched(model, ailora.find_projections(model))}
    assert reason in found[module]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("mamba", "without query and value"), ("wavlm", "past any adapter"), ("kimi_linear", "linear attention")],
)
def test_a_model_type_that_is_left_out_says_why(model_type: str, reason: str) -> None:
    with pytest.raises(ailora.ModelError, match=rf"model type '{model_type}' \(.*{reason}"):
        ailora.find_projections(small(model_type))


def test_an_unknown_model_type_names_its_neighbours() -> None:
    model = small("llama")
    model.config.model_type = "lama4"
    with pytest.raises(ailora.ModelError, match=r"389 model types have rules, such as llama"):
        ailora.find_projections(model)


class _Packed(nn.Module):
    """Queries and values in an `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)


def test_multihead_attention_is_refused_with_the_reason_and_never_adapted_by_name() -> None:
    with pytest.raises(ailora.ModelError, match=r"nn\.MultiheadAttention, .* PEFT's LoRA for it rewrites"):
        ailora.find_projections(_Packed())
    with pytest.raises(ailora.InputError, match="matches no linear module"):
        ailora.find_projections(_Packed(), role_names={"out_proj": "output"})


def test_rows_that_do_not_fit_the_head_counts_are_refused() -> None:
    model = small("phi3")
    for wrong in (5, 7):
        model.config.num_attention_heads = wrong
        message = r"self_attn\.qkv_proj \(64 x 32\), a fused weight of 'phi3': 64 rows do not divide into"
        with pytest.raises(ailora.ModelError, match=message):
            ailora.find_projections(model)


def test_a_configuration_without_head_counts_is_refused() -> None:
    model = small("gpt_neox")
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = SimpleNamespace(model_type="gpt_neox")
    with pytest.raises(ailora.ModelError, match="names no head count; looked for num_attention_heads"):
        ailora.find_projections(model)


def test_linear_layers_that_torch_reads_past_any_adapter_are_left_alone() -> None:
    """In eval mode `nn.TransformerEncoderLayer` reads the weights of its parts: an adapter would have no effect."""
    model = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(8, 2, 16), "up": nn.Linear(8, 8)})
    with pytest.raises(ailora.InputError, match="matches no linear module"):
        ailora.find_projections(model, role_names={"linear1": "up"})
    projections = ailora.find_projections(model, role_names={"up": "up"})
    assert [p.module for p in projections] == ["up"]
    assert "past any adapter" in {r.module: r.reason for r in find_unmatched(model, projections)}["encoder"]
