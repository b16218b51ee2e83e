"""Splits: functions that compute the layout of a fused weight, as in the family's modeling file in transformers.

The arguments of a split are the roles in the order of their rows, the model's configuration and the number of rows.
Head counts come from the configuration, and the head size from the number of rows. A split raises ModelError if the
head counts do not divide the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ailora.errors import ModelError
from ailora.roles.fused_layout import FusedLayout
from ailora.roles.projection import Role


class ModelConfig(Protocol):
    """Configuration of a model in transformers. Its fields depend on the family."""

    model_type: str

    def __getattr__(self, name: str, /) -> int: ...


Split = Callable[[tuple[Role, ...], ModelConfig, int], FusedLayout]

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")


def equal(roles: tuple[Role, ...], _config: ModelConfig, out_features: int) -> FusedLayout:
    """Split into a block per role, all of equal size: GPT-2's `c_attn`, MPT's `Wqkv`, Phi-3's `gate_up_proj`."""
    return _proportional_layout(1, tuple((role, 1) for role in roles), out_features)


def grouped(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split into a block per role, sized by its heads (grouped-query attention): Phi-3's `qkv_proj`, DBRX's `Wqkv`."""
    heads, key_value_heads = head_counts(config)
    counts = {Role.QUERY: heads, Role.KEY: key_value_heads, Role.VALUE: key_value_heads}
    return _proportional_layout(1, tuple((role, counts[role]) for role in roles), out_features)


def per_head(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split every head into the roles: GPT-NeoX's and BLOOM's `query_key_value`, DeBERTa's `in_proj`."""
    heads, _ = head_counts(config)
    return _proportional_layout(heads, tuple((role, 1) for role in roles), out_features)


def per_key_value_head(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split into groups, each with query heads and the key and value that they share: Falcon's new architecture."""
    heads, key_value_heads = head_counts(config)
    if heads % key_value_heads:
        raise ModelError(f"{heads} heads cannot share {key_value_heads} key-value heads evenly")
    counts = {Role.QUERY: heads // key_value_heads, Role.KEY: 1, Role.VALUE: 1}
    return _proportional_layout(key_value_heads, tuple((role, counts[role]) for role in roles), out_features)


def multi_query(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split into a block per role, with all heads for the query and a single head for key and for value."""
    heads, _ = head_counts(config)
    return _proportional_layout(1, tuple((role, heads if role is Role.QUERY else 1) for role in roles), out_features)


def falcon(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split as Falcon's configuration says: new architecture, multi-query, or every head into the roles."""
    if config.new_decoder_architecture:
        return per_key_value_head(roles, config, out_features)
    return (multi_query if config.multi_query else per_head)(roles, config, out_features)


def bigcode(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split as GPT-BigCode's configuration says: multi-query, or every head into the roles."""
    return (multi_query if config.multi_query else per_head)(roles, config, out_features)


def chatglm(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split as ChatGLM's configuration says: a block per role, or every head into the roles."""
    return (grouped if getattr(config, "multi_query_attention", False) else per_head)(roles, config, out_features)


def quarters(roles: tuple[Role, ...], _config: ModelConfig, out_features: int) -> FusedLayout:
    """Split into four groups, each with all roles: CodeGen's `qkv_proj`."""
    # Four in every configuration: CodeGen was trained in parallel on four cores.
    return _proportional_layout(4, tuple((role, 1) for role in roles), out_features)


def latent(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Split `kv_b_proj` of latent attention (DeepSeek-V2, arXiv 2405.04434): each head has a key part and a value."""
    # The rotary part of the key, which all heads share, is in `kv_a_proj_with_mqa`.
    heads, _ = head_counts(config)
    sizes = {Role.KEY: config.qk_nope_head_dim, Role.VALUE: config.v_head_dim}
    layout = FusedLayout(heads, tuple((role, sizes[role]) for role in roles))
    if layout.out_features != out_features:
        raise ModelError(f"{out_features} rows do not fit {layout}")
    return layout


def head_counts(config: ModelConfig) -> tuple[int, int]:
    """Return the numbers of query heads and of key-value heads in a configuration.

    Raises:
        ModelError: The configuration names no head count.
    """
    heads = _first_positive(config, _HEADS)
    if heads is None:
        raise ModelError(f"the configuration names no head count; looked for {', '.join(_HEADS)}")
    # ChatGLM alone has this flag, and calls its number of key-value heads `multi_query_group_num`.
    if getattr(config, "multi_query_attention", False):
        return heads, config.multi_query_group_num
    return heads, _first_positive(config, _KEY_VALUE_HEADS) or heads


def _first_positive(config: ModelConfig, names: tuple[str, ...]) -> int | None:
    """Return the first positive number among the named attributes, or None."""
    # DBRX nests the configuration of its attention.
    configs = (config, getattr(config, "attn_config", None))
    values = (getattr(config, name, None) for config in configs for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _proportional_layout(groups: int, shares: tuple[tuple[Role, int], ...], out_features: int) -> FusedLayout:
    """Return the layout with parts in proportion to `shares`, the number of heads of each role in a group."""
    head_size, remainder = divmod(out_features, groups * sum(share for _, share in shares))
    if remainder or not head_size:
        parts = " + ".join(f"{share} {role}" for role, share in shares)
        raise ModelError(f"{out_features} rows do not divide into {groups} x ({parts}) heads of equal size")
    return FusedLayout(groups, tuple((role, share * head_size) for role, share in shares))
