"""Naming rules, which assign roles to modules by the ends of their names.

Each naming convention is a tuple of rules; the first rule that matches a module applies. A pattern is a regular
expression for the *last* components of a module's name in the modeling files of transformers. The rule of a fused
weight has several roles, in the order of their rows, and a split, which computes the layout. Patterns may be broad
(`o_proj` or `out_proj`), because a test verifies the behaviour of each family.
"""

from __future__ import annotations

from dataclasses import dataclass

from ailora.roles.fused_splits import Split, bigcode, chatglm, equal, falcon, grouped, latent, per_head, quarters
from ailora.roles.projection import Attention, Role


@dataclass(frozen=True)
class Rule:
    """Roles of the modules whose names end with a pattern.

    Attributes:
        pattern: Regular expression for the end of a module's name.
        roles: Roles in the order of their rows in the weight.
        attention: Self or cross. None for a feed-forward block.
        split: Function that computes the layout of the weight's rows. The default also fits a single role.
    """

    pattern: str
    roles: tuple[Role, ...]
    attention: Attention | None = Attention.SELF
    split: Split = equal


def attention(block: str, names: str, kind: Attention = Attention.SELF) -> tuple[Rule, ...]:
    """Return the rules of an attention block with a separate weight for each role.

    Args:
        block: Pattern for the name of the attention block.
        names: Patterns for the names of query, key, value and output inside the block, separated by spaces.
        kind: Self or cross attention.
    """
    roles = (Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT)
    return tuple(Rule(rf"{block}\.{name}", (role,), kind) for name, role in zip(names.split(), roles, strict=True))


def fused_attention(block: str, name: str, output: str, split: Split = equal) -> tuple[Rule, ...]:
    """Return the rules of an attention block with query, key and value in one weight.

    Args:
        block: Pattern for the name of the attention block.
        name: Pattern for the name of the fused module inside the block.
        output: Pattern for the name of the output projection inside the block.
        split: Function that computes the layout of the fused weight.
    """
    return (Rule(rf"{block}\.{name}", _QKV, split=split), Rule(rf"{block}\.{output}", (Role.OUTPUT,)))


def _mlp(block: str, **names: str) -> tuple[Rule, ...]:
    """Return the rules of a feed-forward block; `names` maps each role to the pattern of its module in the block."""
    return tuple(Rule(rf"{block}\.{name}", (Role(role),), None) for role, name in names.items())


_QKV = (Role.QUERY, Role.KEY, Role.VALUE)
_KV = (Role.KEY, Role.VALUE)
_CROSS = Attention.CROSS

#: Feed-forward blocks. The patterns do not match experts, which have no roles.
GATED = _mlp(r"(?:mlp|mlp_block|feed_forward|ffn)", gate="gate_proj", up="up_proj", down="down_proj")
FUSED_GATED = (
    Rule(r"mlp\.gate_up_proj", (Role.GATE, Role.UP), None),
    *_mlp("mlp", down="down_proj"),
)
TWO_LAYERS = (
    *_mlp(r"(?:mlp|ffn|layers\.\d+)", up="fc1", down="fc2"),
    *_mlp(r"mlp", up="lin1", down="lin2"),
    *_mlp(r"mlp", up="linear_fc1", down="linear_fc2"),
    *_mlp(r"mlp", up="c_fc", down="c_proj"),
    *_mlp(r"mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
    *_mlp(r"mlp", up="fc_in", down="fc_out"),
    *_mlp(r"mlp", up="dense1", down="dense2"),
    *_mlp(r"feed_forward", up="intermediate_dense", down="output_dense"),
)
_W123 = _mlp("feed_forward", gate="w1", up="w3", down="w2")

_QKV_NAMES = "q_proj k_proj v_proj"
_OUTPUT_NAME = r"(?:o_proj|out_proj|dense|proj|c_proj|projection_layer|output_projection\.o_proj)"
_SELF_BLOCK = r"(?:self_attn|self_attention|attention|attn)"
_CROSS_BLOCK = r"(?:encoder_attn|(?:text_|vision_)?cross_attn|cross_attention|x_attn)"

#: The attention of `SEPARATE`, for families whose feed-forward blocks have other names.
ATTENTION_ONLY = (
    *attention(_SELF_BLOCK, f"{_QKV_NAMES} {_OUTPUT_NAME}"),
    *attention(_CROSS_BLOCK, f"{_QKV_NAMES} {_OUTPUT_NAME}", _CROSS),
)
#: `self_attn.q_proj`, `k_proj`, `v_proj` and an output: most families since 2020.
SEPARATE = (*ATTENTION_ONLY, *GATED, *TWO_LAYERS, *_W123)
GLM = ATTENTION_ONLY + FUSED_GATED
_INNER = "(?:self|attention)"
_BERT_NAMES = rf"{_INNER}\.query {_INNER}\.key {_INNER}\.value output\.dense"
_BERT_ATTENTION = (*attention("attention", _BERT_NAMES), *attention("crossattention", _BERT_NAMES, _CROSS))
_BERT_MLP = (*_mlp(r"\d+", up=r"intermediate\.dense", down=r"output\.dense"), *TWO_LAYERS)
BERT = (*_BERT_ATTENTION, *_BERT_MLP)
DEBERTA_V2 = (
    *attention(r"attention", r"self\.query_proj self\.key_proj self\.value_proj output\.dense"),
    *_BERT_MLP,
)
DEBERTA = (
    Rule(r"attention\.self\.in_proj", _QKV, split=per_head),
    Rule(r"attention\.output\.dense", (Role.OUTPUT,)),
    *_BERT_MLP,
)
ALBERT = (
    *attention("attention", "query key value (?:dense|proj|output)"),
    *_mlp(r"albert_layers\.\d+", up="ffn", down="ffn_output"),
    *TWO_LAYERS,
)
DISTILBERT = (*attention("attention", "q_lin k_lin v_lin out_lin"), *_mlp("ffn", up="lin1", down="lin2"))
#: XLM has a list of all attentions and a list of all feed-forward blocks, and no list of layers.
XLM = (
    *attention(r"attentions\.\d+", "q_lin k_lin v_lin out_lin"),
    *_mlp(r"ffns\.\d+", up="lin1", down="lin2"),
)
MPNET = (*attention(r"attention\.attn", "q k v o"), *_BERT_MLP)
T5 = (
    *attention(r"(?:Local)?SelfAttention", "q k v o"),
    *attention("EncDecAttention", "q k v o", _CROSS),
    *_mlp("DenseReluDense", up="(?:wi|wi_1)", gate="wi_0", down="wo"),
)
GPT2 = (
    *fused_attention("attn", "c_attn", "c_proj"),
    Rule(r"crossattention\.q_attn", (Role.QUERY,), _CROSS),
    Rule(r"crossattention\.c_attn", _KV, _CROSS),
    Rule(r"crossattention\.c_proj", (Role.OUTPUT,), _CROSS),
    *TWO_LAYERS,
)
BIGCODE = (*fused_attention("attn", "c_attn", "c_proj", bigcode), *TWO_LAYERS)
PHI3 = (*fused_attention("self_attn", "qkv_proj", "o_proj", grouped), *FUSED_GATED)
#: The pattern includes the layer's index, because the audio and vision towers use the same names for other kinds of
#: attention.
PHI4 = (*fused_attention(r"layers\.\d+\.self_attn", "qkv_proj", "o_proj", grouped), *FUSED_GATED)
NEOX = (*fused_attention("(?:attention|self_attention|self_attn)", "query_key_value", "dense", per_head), *TWO_LAYERS)
FALCON = (*fused_attention("self_attention", "query_key_value", "dense", falcon), *TWO_LAYERS)
CODEGEN = (
    Rule(r"attn\.qkv_proj", (Role.QUERY, Role.VALUE, Role.KEY), split=quarters),
    Rule(r"attn\.out_proj", (Role.OUTPUT,)),
    *TWO_LAYERS,
)
MPT = (*fused_attention("attn", "Wqkv", "out_proj"), *_mlp("ffn", up="up_proj", down="down_proj"))
#: transformers has no modeling file for this family, only remote code.
CHATGLM = (
    *fused_attention("self_attention", "query_key_value", "dense", chatglm),
    Rule(r"mlp\.dense_h_to_4h", (Role.GATE, Role.UP), None),
    *_mlp("mlp", down="dense_4h_to_h"),
)
#: transformers calls the two halves of `Wi` input and gate. The activation applies to the first half, so our gate is
#: the half that transformers calls input.
_MODERNBERT_MLP = (Rule(r"mlp\.Wi", (Role.GATE, Role.UP), None), *_mlp("mlp", down="Wo"))
MODERNBERT = (*fused_attention("attn", "Wqkv", "Wo"), *_MODERNBERT_MLP)
MODERNBERT_DECODER = (*attention("attn", f"{_QKV_NAMES} Wo"), *_MODERNBERT_MLP)
#: The feed-forward blocks of DBRX are experts, which have no roles.
DBRX = fused_attention("attn", "Wqkv", "out_proj", grouped)
#: `attn.qkv` in three equal blocks, as in most vision transformers with fused weights.
VISION_QKV = (
    *fused_attention("(?:attn|attention|self_attn)", "qkv", "(?:proj|projection)"),
    *GATED,
    *TWO_LAYERS,
)
TIMESFORMER = (
    tuple(
        rule
        for block in ("attention", "temporal_attention")
        for rule in (Rule(rf"{block}\.attention\.qkv", _QKV), Rule(rf"{block}\.output\.dense", (Role.OUTPUT,)))
    )
    + _BERT_MLP
)
CTRL = attention("multi_head_attention", "Wq Wk Wv dense")
CPMANT = attention(r"self_att\.self_attention", "project_q project_k project_v attention_out")
GPT_NEO = (*attention(r"attn\.attention", f"{_QKV_NAMES} out_proj"), *TWO_LAYERS)
#: Nemotron-H has three kinds of mixers. Only attention has these names.
NEMOTRON_H = attention("mixer", f"{_QKV_NAMES} o_proj")
RECURRENT_GEMMA = (*attention("temporal_block", f"{_QKV_NAMES} o_proj"), *GATED)
CONFORMER = (
    *attention("self_attn", "linear_q linear_k linear_v linear_out"),
    *_mlp(r"ffn[12]", up="intermediate_dense", down="output_dense"),
)
SEAMLESS = (*SEPARATE, *CONFORMER)
#: Swin uses BERT's names when it is the backbone of another family.
SWIN = (*SEPARATE, *BERT)
LED = (
    *attention(
        "self_attn", r"longformer_self_attn\.query longformer_self_attn\.key longformer_self_attn\.value output"
    ),
    *SEPARATE,
)
BIGBIRD_PEGASUS = (*attention("self_attn", r"self\.query self\.key self\.value output"), *SEPARATE)
#: Each linear map is the submodule `linear` of a wrapper.
WRAPPED = (
    *attention("self_attn", r"q_proj\.linear k_proj\.linear v_proj\.linear o_proj\.linear"),
    *_mlp("mlp", gate=r"gate_proj\.linear", up=r"up_proj\.linear", down=r"down_proj\.linear"),
)
PROPHETNET = (
    *attention("self_attn", "query_proj key_proj value_proj out_proj"),
    *attention("cross_attn", "query_proj key_proj value_proj out_proj", _CROSS),
    *_mlp("feed_forward", up="intermediate", down="output"),
)
_CVT_NAMES = r"attention\.projection_query attention\.projection_key attention\.projection_value output\.dense"
CVT = (*attention("attention", _CVT_NAMES), *_BERT_MLP)
QFORMER = (*_BERT_ATTENTION, *_mlp(r"\d+", up=r"intermediate_query\.dense", down=r"output_query\.dense"))
LXMERT = (
    *BERT,
    *attention(r"(?:lang|visn)_self_att", r"self\.query self\.key self\.value output\.dense"),
    *attention("visual_attention", r"att\.query att\.key att\.value output\.dense", _CROSS),
)
#: Latent attention (DeepSeek-V2, arXiv 2405.04434). `docs/architectures.md` explains the choice of these weights.
LATENT = (
    Rule(r"(?:self_attn|self_attn\.\d+)\.(?:q_proj|q_b_proj)", (Role.QUERY,)),
    Rule(r"(?:self_attn|self_attn\.\d+)\.kv_b_proj", _KV, split=latent),
    Rule(r"(?:self_attn|self_attn\.\d+)\.o_proj", (Role.OUTPUT,)),
    *GATED,
)
#: `q_proj` is excluded, because linear attention, which alternates with latent attention in this family, uses the name.
GLM5_NEXT = (Rule(r"self_attn\.q_b_proj", (Role.QUERY,)), *LATENT[1:])
#: `out_proj` is excluded, because it is the output of MiniMax's lightning attention.
MINIMAX = attention("self_attn", f"{_QKV_NAMES} o_proj")
#: `SEPARATE`, except that `q_proj` also holds the gate of the attention output: each head has rows for the query and
#: for the gate.
GATED_QUERY = (Rule(r"self_attn\.q_proj", (Role.QUERY, Role.GATE), split=per_head), *SEPARATE[1:])
