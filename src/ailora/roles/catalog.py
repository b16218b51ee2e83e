"""The architectures we know, as data: which module names play which role in which family.

Adding a family is a row of `FAMILIES`. A pattern is a regular expression for the *end* of a module's name, starting
at a dot or at the name's beginning; read it off the family's modeling file in transformers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ailora.roles.projection import Attention, Role

Rule = tuple[str, Role, Attention | None]


def _attention(prefix: str, names: tuple[str, str, str, str], kind: Attention = Attention.SELF) -> tuple[Rule, ...]:
    roles = (Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT)
    return tuple((prefix + name, role, kind) for name, role in zip(names, roles, strict=True))


_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_QKV_OUT = ("q_proj", "k_proj", "v_proj", "out_proj")
_GATED_MLP: tuple[Rule, ...] = (
    (r"mlp\.gate_proj", Role.GATE, None),
    (r"mlp\.up_proj", Role.UP, None),
    (r"mlp\.down_proj", Role.DOWN, None),
)
_FC_MLP: tuple[Rule, ...] = ((r"mlp\.fc1", Role.UP, None), (r"mlp\.fc2", Role.DOWN, None))
_FC_LAYER: tuple[Rule, ...] = ((r"layers\.\d+\.fc1", Role.UP, None), (r"layers\.\d+\.fc2", Role.DOWN, None))
_BERT_MLP: tuple[Rule, ...] = (
    (r"layer\.\d+\.intermediate\.dense", Role.UP, None),
    (r"layer\.\d+\.output\.dense", Role.DOWN, None),
)

_DECODER = _attention(r"self_attn\.", _QKVO) + _GATED_MLP
_PHI = _attention(r"self_attn\.", ("q_proj", "k_proj", "v_proj", "dense")) + _FC_MLP
_ENCODER_DECODER = (
    _attention(r"self_attn\.", _QKV_OUT) + _attention(r"encoder_attn\.", _QKV_OUT, Attention.CROSS) + _FC_LAYER
)
_CLIP = _attention(r"self_attn\.", _QKV_OUT) + _FC_MLP
_VIT = _attention(r"attention\.", _QKVO) + _FC_MLP
_BERT = (
    _attention(r"attention\.", ("self.query", "self.key", "self.value", "output.dense"))
    + _attention(r"crossattention\.", ("self.query", "self.key", "self.value", "output.dense"), Attention.CROSS)
    + _BERT_MLP
)
_DEBERTA_V2 = (
    _attention(r"attention\.", ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense")) + _BERT_MLP
)
_ALBERT = (
    *_attention(r"attention\.", ("query", "key", "value", "dense")),
    (r"albert_layers\.\d+\.ffn", Role.UP, None),
    (r"albert_layers\.\d+\.ffn_output", Role.DOWN, None),
)
_DISTILBERT = (
    *_attention(r"attention\.", ("q_lin", "k_lin", "v_lin", "out_lin")),
    (r"ffn\.lin1", Role.UP, None),
    (r"ffn\.lin2", Role.DOWN, None),
)
_T5 = (
    *_attention(r"SelfAttention\.", ("q", "k", "v", "o")),
    *_attention(r"EncDecAttention\.", ("q", "k", "v", "o"), Attention.CROSS),
    (r"DenseReluDense\.wi", Role.UP, None),
    (r"DenseReluDense\.wi_0", Role.GATE, None),
    (r"DenseReluDense\.wi_1", Role.UP, None),
    (r"DenseReluDense\.wo", Role.DOWN, None),
)

#: config.model_type -> rules
FAMILIES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _DECODER),
    "phi": _PHI,
    **dict.fromkeys(("opt", "bart", "mbart", "marian", "pegasus", "whisper"), _ENCODER_DECODER),
    **dict.fromkeys(("clip", "clip_text_model", "clip_vision_model"), _CLIP),
    "vit": _VIT,
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "deberta-v2": _DEBERTA_V2,
    "albert": _ALBERT,
    "distilbert": _DISTILBERT,
    **dict.fromkeys(("t5", "mt5"), _T5),
}

#: config.model_type -> end of the names of weights that hold several roles in one tensor
FUSED: dict[str, str] = {
    "gpt2": r"attn\.c_attn",
    "gpt_bigcode": r"attn\.c_attn",
    "phi3": r"self_attn\.qkv_proj",
    "gpt_neox": r"attention\.query_key_value",
    "bloom": r"self_attention\.query_key_value",
    "falcon": r"self_attention\.query_key_value",
    "codegen": r"attn\.qkv_proj",
    "mpt": r"attn\.Wqkv",
    "chatglm": r"self_attention\.query_key_value",
    "modernbert": r"attn\.Wqkv",
    "dbrx": r"attn\.Wqkv",
    "deberta": r"attention\.self\.in_proj",
}


@dataclass(frozen=True)
class Match:
    """The role that a rule gives to a module, and the rule's source."""

    role: Role
    attention: Attention | None
    rule: str


def match_family(model_type: str, module: str) -> Match | None:
    """The role of `module` in a family, or None when no rule of that family names it."""
    for pattern, role, attention in FAMILIES.get(model_type, ()):
        if ends_with(pattern, module):
            return Match(role, attention, model_type)
    return None


def ends_with(pattern: str, module: str) -> bool:
    """Whether a module's name ends with `pattern`, counted from a dot or from the name's beginning."""
    return re.search(rf"(?:^|\.)(?:{pattern})$", module) is not None
