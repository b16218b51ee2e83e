"""How the families cut their fused weights, each order read off the family's modeling file in transformers.

A split takes the roles in the order in which they lie, the model's configuration and the number of rows, and gives the
layout. Head counts come from the configuration, the size of a head from the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ailora.errors import ModelError
from ailora.roles.fused_layout import FusedLayout
from ailora.roles.projection import Role


class ModelConfig(Protocol):
    """A configuration of transformers: its fields depend on the family."""

    model_type: str

    def __getattr__(self, name: str, /) -> int: ...


Split = Callable[[tuple[Role, ...], ModelConfig, int], FusedLayout]

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")


def equal(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """One block for each role, all of one size: GPT-2's `c_attn`, MPT's `Wqkv`, Phi-3's `gate_up_proj`."""
    return _whole(1, tuple((role, 1) for role in roles), out_features)


def grouped(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """One block for each role, with the heads that the role has: Phi-3's `qkv_proj`, DBRX's `Wqkv`."""
    heads, key_value_heads = head_counts(config)
    counts = {Role.QUERY: heads, Role.KEY: key_value_heads, Role.VALUE: key_value_heads}
    return _whole(1, tuple((role, counts[role]) for role in roles), out_features)


def per_head(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """The roles side by side in every head: GPT-NeoX's and BLOOM's `query_key_value`, DeBERTa's `in_proj`."""
    heads, _ = head_counts(config)
    return _whole(heads, tuple((role, 1) for role in roles), out_features)


def per_key_value_head(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """For every key-value head the queries that share it, then the head itself: Falcon's new architecture."""
    heads, key_value_heads = head_counts(config)
    if heads % key_value_heads:
        raise ModelError(f"{heads} heads cannot share {key_value_heads} key-value heads evenly")
    counts = {Role.QUERY: heads // key_value_heads, Role.KEY: 1, Role.VALUE: 1}
    return _whole(key_value_heads, tuple((role, counts[role]) for role in roles), out_features)


def multi_query(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """One block for each role; all heads share one key-value head."""
    heads, _ = head_counts(config)
    return _whole(1, tuple((role, heads if role is Role.QUERY else 1) for role in roles), out_features)


def falcon(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """Falcon's three forms: new architecture, multi-query, and one query per key-value head."""
    if config.new_decoder_architecture:
        return per_key_value_head(roles, config, out_features)
    return (multi_query if config.multi_query else per_head)(roles, config, out_features)


def bigcode(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """GPT-BigCode: blocks when all heads share one key-value head, else side by side in every head."""
    return (multi_query if config.multi_query else per_head)(roles, config, out_features)


def quarters(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """CodeGen: four groups, a trace of the four cores that it was trained on; each holds query, value, key."""
    return _whole(4, tuple((role, 1) for role in roles), out_features)


def latent(roles: tuple[Role, ...], config: ModelConfig, out_features: int) -> FusedLayout:
    """`kv_b_proj` of latent attention (DeepSeek-V2, arXiv 2405.04434): per head a key without position, a value."""
    heads, _ = head_counts(config)
    sizes = {Role.KEY: config.qk_nope_head_dim, Role.VALUE: config.v_head_dim}
    layout = FusedLayout(heads, tuple((role, sizes[role]) for role in roles))
    if layout.out_features != out_features:
        raise ModelError(f"{out_features} rows do not fit {layout}")
    return layout


def head_counts(config: ModelConfig) -> tuple[int, int]:
    """Heads and key-value heads that a configuration names.

    Raises:
        ModelError: it names no head count.
    """
    heads = _first(config, _HEADS)
    if heads is None:
        raise ModelError(f"the configuration names no head count; looked for {', '.join(_HEADS)}")
    if getattr(config, "multi_query_attention", False):
        return heads, config.multi_query_group_num
    return heads, _first(config, _KEY_VALUE_HEADS) or heads


def _first(config: ModelConfig, names: tuple[str, ...]) -> int | None:
    """The first of the attributes that is a number; DBRX keeps them in a part of its own."""
    places = (config, getattr(config, "attn_config", None))
    found = (getattr(place, name, None) for place in places for name in names)
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def _whole(groups: int, shares: tuple[tuple[Role, int], ...], out_features: int) -> FusedLayout:
    """The layout whose parts have sizes in proportion to `shares`."""
    size, rest = divmod(out_features, groups * sum(share for _, share in shares))
    if rest or not size:
        parts = " + ".join(f"{share} {role}" for role, share in shares)
        raise ModelError(f"{out_features} rows do not divide into {groups} x ({parts}) heads of one size")
    return FusedLayout(groups, tuple((role, share * size) for role, share in shares))
