"""The architectures we know, as data: which module names play which role in which family.

Adding a family is a row of `FAMILIES`. A pattern is a regular expression for the *end* of a module's name, starting
at a dot or at the name's beginning; read it off the family's modeling file in transformers. A weight that holds several
roles has a rule with all of them, in the order in which they lie, and a split that says how they are dealt out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ailora.roles.projection import Attention, Role
from ailora.roles.splits import Split, bigcode, equal, falcon, grouped, per_head, quarters


@dataclass(frozen=True)
class Rule:
    """What the modules whose names end with a pattern are for.

    Attributes:
        pattern: regular expression for the end of a module's name.
        roles: the roles in the order in which their rows lie in the weight.
        attention: self or cross; None for a feed-forward block.
        split: how the rows of several roles are dealt out.
    """

    pattern: str
    roles: tuple[Role, ...]
    attention: Attention | None = Attention.SELF
    split: Split = equal


def _attention(prefix: str, names: tuple[str, ...], kind: Attention = Attention.SELF) -> tuple[Rule, ...]:
    roles = (Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT)
    return tuple(Rule(prefix + name, (role,), kind) for name, role in zip(names, roles, strict=True))


def _mlp(*named: tuple[str, Role]) -> tuple[Rule, ...]:
    return tuple(Rule(pattern, (role,), None) for pattern, role in named)


_QKV = (Role.QUERY, Role.KEY, Role.VALUE)


_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_QKV_OUT = ("q_proj", "k_proj", "v_proj", "out_proj")
_GATED_MLP = _mlp((r"mlp\.gate_proj", Role.GATE), (r"mlp\.up_proj", Role.UP), (r"mlp\.down_proj", Role.DOWN))
_FUSED_GATED_MLP = (
    Rule(r"mlp\.gate_up_proj", (Role.GATE, Role.UP), None),
    Rule(r"mlp\.down_proj", (Role.DOWN,), None),
)
_FC_MLP = _mlp((r"mlp\.fc1", Role.UP), (r"mlp\.fc2", Role.DOWN))
_FC_LAYER = _mlp((r"layers\.\d+\.fc1", Role.UP), (r"layers\.\d+\.fc2", Role.DOWN))
_BERT_MLP = _mlp((r"layer\.\d+\.intermediate\.dense", Role.UP), (r"layer\.\d+\.output\.dense", Role.DOWN))
_GPT2_MLP = _mlp((r"mlp\.c_fc", Role.UP), (r"mlp\.c_proj", Role.DOWN))
_NEOX_MLP = _mlp((r"mlp\.dense_h_to_4h", Role.UP), (r"mlp\.dense_4h_to_h", Role.DOWN))

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
_DEBERTA = (
    Rule(r"attention\.self\.in_proj", _QKV, split=per_head),
    Rule(r"attention\.output\.dense", (Role.OUTPUT,)),
    *_BERT_MLP,
)
_ALBERT = (
    *_attention(r"attention\.", ("query", "key", "value", "dense")),
    *_mlp((r"albert_layers\.\d+\.ffn", Role.UP), (r"albert_layers\.\d+\.ffn_output", Role.DOWN)),
)
_DISTILBERT = (
    *_attention(r"attention\.", ("q_lin", "k_lin", "v_lin", "out_lin")),
    *_mlp((r"ffn\.lin1", Role.UP), (r"ffn\.lin2", Role.DOWN)),
)
_T5 = (
    *_attention(r"SelfAttention\.", ("q", "k", "v", "o")),
    *_attention(r"EncDecAttention\.", ("q", "k", "v", "o"), Attention.CROSS),
    *_mlp(
        (r"DenseReluDense\.wi", Role.UP),
        (r"DenseReluDense\.wi_0", Role.GATE),
        (r"DenseReluDense\.wi_1", Role.UP),
        (r"DenseReluDense\.wo", Role.DOWN),
    ),
)
_GPT2 = (
    Rule(r"attn\.c_attn", _QKV),
    Rule(r"attn\.c_proj", (Role.OUTPUT,)),
    Rule(r"crossattention\.q_attn", (Role.QUERY,), Attention.CROSS),
    Rule(r"crossattention\.c_attn", (Role.KEY, Role.VALUE), Attention.CROSS),
    Rule(r"crossattention\.c_proj", (Role.OUTPUT,), Attention.CROSS),
    *_GPT2_MLP,
)
_BIGCODE = (Rule(r"attn\.c_attn", _QKV, split=bigcode), Rule(r"attn\.c_proj", (Role.OUTPUT,)), *_GPT2_MLP)
_PHI3 = (
    Rule(r"self_attn\.qkv_proj", _QKV, split=grouped),
    Rule(r"self_attn\.o_proj", (Role.OUTPUT,)),
    *_FUSED_GATED_MLP,
)
_NEOX = (
    Rule(r"attention\.query_key_value", _QKV, split=per_head),
    Rule(r"attention\.dense", (Role.OUTPUT,)),
    *_NEOX_MLP,
)
_BLOOM = (
    Rule(r"self_attention\.query_key_value", _QKV, split=per_head),
    Rule(r"self_attention\.dense", (Role.OUTPUT,)),
    *_NEOX_MLP,
)
_FALCON = (
    Rule(r"self_attention\.query_key_value", _QKV, split=falcon),
    Rule(r"self_attention\.dense", (Role.OUTPUT,)),
    *_NEOX_MLP,
)
_PERSIMMON = (
    Rule(r"self_attn\.query_key_value", _QKV, split=per_head),
    Rule(r"self_attn\.dense", (Role.OUTPUT,)),
    *_NEOX_MLP,
)
_CODEGEN = (
    Rule(r"attn\.qkv_proj", (Role.QUERY, Role.VALUE, Role.KEY), split=quarters),
    Rule(r"attn\.out_proj", (Role.OUTPUT,)),
    *_mlp((r"mlp\.fc_in", Role.UP), (r"mlp\.fc_out", Role.DOWN)),
)
_MPT = (
    Rule(r"attn\.Wqkv", _QKV),
    Rule(r"attn\.out_proj", (Role.OUTPUT,)),
    *_mlp((r"ffn\.up_proj", Role.UP), (r"ffn\.down_proj", Role.DOWN)),
)
#: Remote code: the family has no modeling file in transformers.
_CHATGLM = (
    Rule(r"self_attention\.query_key_value", _QKV, split=grouped),
    Rule(r"self_attention\.dense", (Role.OUTPUT,)),
    Rule(r"mlp\.dense_h_to_4h", (Role.GATE, Role.UP), None),
    Rule(r"mlp\.dense_4h_to_h", (Role.DOWN,), None),
)
_GLM = _attention(r"self_attn\.", _QKVO) + _FUSED_GATED_MLP
#: Its `Wi` holds input and gate, which the activation is taken of first.
_MODERNBERT = (
    Rule(r"attn\.Wqkv", _QKV),
    Rule(r"attn\.Wo", (Role.OUTPUT,)),
    Rule(r"mlp\.Wi", (Role.GATE, Role.UP), None),
    Rule(r"mlp\.Wo", (Role.DOWN,), None),
)
#: The feed-forward blocks of DBRX are experts, which are left alone.
_DBRX = (Rule(r"attn\.Wqkv", _QKV, split=grouped), Rule(r"attn\.out_proj", (Role.OUTPUT,)))

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
    "gpt2": _GPT2,
    "gpt_bigcode": _BIGCODE,
    "phi3": _PHI3,
    "gpt_neox": _NEOX,
    "bloom": _BLOOM,
    "falcon": _FALCON,
    "persimmon": _PERSIMMON,
    "codegen": _CODEGEN,
    "mpt": _MPT,
    "chatglm": _CHATGLM,
    **dict.fromkeys(("glm", "glm4"), _GLM),
    "modernbert": _MODERNBERT,
    "dbrx": _DBRX,
    "deberta": _DEBERTA,
}


def match_family(model_type: str, module: str) -> Rule | None:
    """The rule of a family that names `module`, or None when none does."""
    return next((rule for rule in FAMILIES.get(model_type, ()) if ends_with(rule.pattern, module)), None)


def ends_with(pattern: str, module: str) -> bool:
    """Whether a module's name ends with `pattern`, counted from a dot or from the name's beginning."""
    return re.search(rf"(?:^|\.)(?:{pattern})$", module) is not None
