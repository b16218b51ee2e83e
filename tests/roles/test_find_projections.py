"""Roles in the families that the catalog knows, and what is said of models that it does not know."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import ailora
from ailora.roles import Attention
from ailora.roles.catalog import FAMILIES

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


def meta_model(model_type: str) -> nn.Module:
    with torch.device("meta"):
        return tf.AutoModel.from_config(tf.AutoConfig.for_model(model_type, **EXPECTED[model_type][0]))


def test_every_family_of_the_catalog_is_tried() -> None:
    from tests.contracts.test_fused import FUSED

    assert EXPECTED.keys() | {f.config.model_type for f in FUSED.values()} | {"chatglm"} == FAMILIES.keys()


@pytest.mark.parametrize("model_type", EXPECTED)
def test_the_roles_of_a_family(model_type: str) -> None:
    projections = ailora.find_projections(meta_model(model_type))
    assert Counter(p.role.value for p in projections) == EXPECTED[model_type][1]
    assert len({p.module for p in projections}) == len(projections)
    for p in projections:
        assert p.rows == ((0, p.out_features),)
        # CLIP itself has no projections: its towers have configurations of their own.
        assert p.rule.startswith(model_type)


@pytest.mark.parametrize("model_type", ["t5", "bart", "whisper"])
def test_self_and_cross_attention_are_told_apart(model_type: str) -> None:
    projections = ailora.find_projections(meta_model(model_type))
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
        ("blocks.0.wq", "query", "role_names"),
        ("blocks.0.wv", "value", "role_names"),
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
