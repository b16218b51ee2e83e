"""Detect the projections of a model, from module names and the catalog."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import nn

from ailora.errors import InputError, ModelError
from ailora.formatting import collapse_layer_index
from ailora.module_pattern import ModulePatterns
from ailora.roles.catalog import FAMILIES, LEFT_OUT, find_rule
from ailora.roles.fused_splits import ModelConfig
from ailora.roles.naming_rules import Rule
from ailora.roles.projection import Attention, Projection, Role, parse_role

_MAX_LISTED_MODULES = 12

#: Modules of torch that read the weights of their submodules directly. Adapters on the submodules would have no effect.
_BYPASSING_CLASSES: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "nn.TransformerEncoderLayer: in eval mode torch reads the weights of its linear layers "
    "directly, past any adapter",
    nn.MultiheadAttention: "nn.MultiheadAttention, which is not supported: PEFT's LoRA for it rewrites the base weight "
    "in every forward pass, and always adapts out_proj too",
}


def find_projections(model: nn.Module, *, role_names: Mapping[str, Role | str] | None = None) -> tuple[Projection, ...]:
    """Find the projections of a model by the rules of the catalog and by `role_names`.

    A module that occurs several times in the model (ALBERT's shared layers) is listed once. In a model with PEFT
    layers, the module names are those before injection. In a composite model, each part (such as a tower of CLIP)
    follows the rules for its own model type.

    Args:
        model: A model of transformers, or any module if `role_names` is given. No weight is read: the model may be on
            the meta device.
        role_names: Regular expression -> role of the linear modules whose names contain a match. Takes precedence over
            the catalog.

    Returns:
        Projections in the order of the modules. The projections of a fused weight are in the order of their rows.

    Raises:
        InputError: `model` is not a module, a regular expression is invalid or matches no linear module, or a role is
            unknown.
        ModelError: The rules find neither query nor value, or the rows of a fused weight do not fit the head counts of
            the configuration.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> [projection.role.value for projection in find_projections(model)]
        ['query', 'key', 'value', 'output', 'up', 'down']
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected an nn.Module as model, got {model!r}")
    linear = find_linear_modules(model)
    named_roles = _match_role_names(_parse_role_names(role_names or {}), linear)
    configs = _find_configs(model)
    projections: list[Projection] = []
    for name, module in linear.items():
        if name in named_roles:
            pattern, role = named_roles[name]
            in_attention = role in (Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT)
            rule = Rule(pattern, (role,), Attention.SELF if in_attention else None)
            projections += _build_projections(name, module, rule)
            continue
        for config in _enclosing_configs(configs, name):
            if rule := find_rule(config.model_type, name):
                projections += _build_projections(name, module, rule, config)
                break
    # Rules that match only feed-forward modules leave the attention unknown.
    if not any(p.role in (Role.QUERY, Role.VALUE) for p in projections) and not named_roles:
        raise _unknown_model_error(model, linear)
    return tuple(projections)


def weight_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return the shape (out, in) of a linear map, or None for any other module."""
    # transformers' Conv1D (GPT-2) calls its sizes `nf` and `nx`.
    names = ("nf", "nx") if type(module).__name__ == "Conv1D" else ("out_features", "in_features")
    out, in_ = (getattr(module, name, None) for name in names)
    # A PEFT layer repeats the sizes of its base layer, which `named_modules()` lists separately.
    if isinstance(out, int) and isinstance(in_, int) and not hasattr(module, "base_layer"):
        return out, in_
    return None


def find_linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Find the linear maps of a model: `nn.Linear`, transformers' `Conv1D`, and quantized layers.

    Returns:
        Modules by their names before injection by PEFT, in the order of the model. Submodules of modules that bypass
        adapters are excluded.
    """
    bypassed = tuple(f"{name}." for name in find_bypassing_modules(model))
    # PEFT moves a wrapped module to `NAME.base_layer`, and adds the factors as linear modules below `NAME.lora_A` and
    # `NAME.lora_B`.
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if weight_shape(module) is not None and ".lora_" not in name and not name.startswith(bypassed)
    }


def find_bypassing_modules(model: nn.Module) -> dict[str, str]:
    """Find the modules that bypass adapters on their submodules.

    Returns:
        Module name -> class of the module, with an explanation.
    """
    return {
        name: reason
        for name, module in model.named_modules()
        for bypassing_class, reason in _BYPASSING_CLASSES.items()
        if isinstance(module, bypassing_class)
    }


def _find_configs(model: nn.Module) -> dict[str, ModelConfig]:
    """Return the configurations of a model and of its parts, by module name."""
    configs = {name.removesuffix(".base_layer"): getattr(m, "config", None) for name, m in model.named_modules()}
    return {
        name: config for name, config in configs.items() if config is not None and getattr(config, "model_type", None)
    }


def _enclosing_configs(configs: Mapping[str, ModelConfig], module: str) -> Iterator[ModelConfig]:
    """Yield the configurations of the modules around `module`, from the nearest to the whole model."""
    name = module
    while name:
        name = name.rpartition(".")[0]
        if name in configs:
            yield configs[name]


def _build_projections(name: str, module: nn.Module, rule: Rule, config: ModelConfig | None = None) -> list[Projection]:
    source = config.model_type if config is not None else f"role_names: {rule.pattern}"
    shape = weight_shape(module)
    assert shape is not None
    try:
        # A rule from `role_names` has no configuration, and its split, `equal`, needs none.
        layout = rule.split(rule.roles, cast("ModelConfig", config), shape[0])
    except ModelError as error:
        raise ModelError(f"{name} ({shape[0]} x {shape[1]}), a fused weight of {source!r}: {error}") from None
    dtype = _format_dtype(module)
    description = str(layout) if len(rule.roles) > 1 else ""
    return [
        Projection(name, role, rule.attention, layout.rows(role), shape, dtype, source, description)
        for role in rule.roles
    ]


def _format_dtype(module: nn.Module) -> str:
    """Return the value of `Projection.dtype`: the dtype of the weight, with the class of an unusual tensor.

    For a layer without a tensor `weight`, this is the class of the layer.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return type(module).__name__
    dtype = str(weight.dtype).removeprefix("torch.")
    return dtype if type(weight) in (torch.Tensor, nn.Parameter) else f"{dtype} ({type(weight).__name__})"


def _parse_role_names(role_names: Mapping[str, Role | str]) -> dict[str, Role]:
    if not isinstance(role_names, Mapping):
        raise InputError(
            f"role_names must map regular expressions to roles, such as {{'wq$': 'query'}}, got {role_names!r}"
        )
    return {pattern: parse_role(role) for pattern, role in role_names.items()}


def _match_role_names(role_names: Mapping[str, Role], linear: Mapping[str, nn.Module]) -> dict[str, tuple[str, Role]]:
    """Map each matching linear module to the first pattern that matches and its role.

    Raises:
        InputError: A pattern is not a regular expression, or matches no name.
    """
    patterns = ModulePatterns("role_names")
    named_roles: dict[str, tuple[str, Role]] = {}
    for pattern, role in role_names.items():
        matching = [module for module in linear if patterns.search(pattern, module)]
        if not matching:
            # Without linear modules, no search has validated the pattern.
            patterns.validate(pattern)
            raise InputError(
                f"role_names: {pattern!r} ({role}) matches no linear module; the model has:\n" + _format_modules(linear)
            )
        for module in matching:
            named_roles.setdefault(module, (pattern, role))
    return named_roles


def _format_modules(linear: Mapping[str, nn.Module]) -> str:
    """List linear modules and their shapes for an error. Corresponding modules of all layers share a line."""
    shapes: dict[str, str] = {}
    for name, module in linear.items():
        collapsed = collapse_layer_index(name)
        shapes.setdefault(collapsed, f"  {collapsed}  ({' x '.join(map(str, weight_shape(module) or ()))})")
    lines = list(shapes.values())
    omitted = [f"  ... and {len(lines) - _MAX_LISTED_MODULES} more"] if len(lines) > _MAX_LISTED_MODULES else []
    return "\n".join(lines[:_MAX_LISTED_MODULES] + omitted) or "  (none)"


def _unknown_model_error(model: nn.Module, linear: Mapping[str, nn.Module]) -> ModelError:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    subject = f"model type {model_type!r}" if model_type else f"a {type(model).__name__} without config.model_type"
    if model_type in LEFT_OUT:
        subject += f" ({LEFT_OUT[model_type]})"
    if bypassing := find_bypassing_modules(model):
        name, reason = next(iter(bypassing.items()))
        subject += f" ({name} is an {reason})"
    similar = difflib.get_close_matches(str(model_type), FAMILIES, n=3)
    return ModelError(
        f"no naming rule for the roles of {subject}. Its linear modules are:\n{_format_modules(linear)}\n"
        'Name their roles: role_names={"attn\\\\.wq$": "query", "attn\\\\.wv$": "value"} '
        '(in YAML: adapter: {role_names: {"attn\\\\.wq$": query, "attn\\\\.wv$": value}}). '
        f"{len(FAMILIES)} model types have rules" + (f", such as {', '.join(similar)}" if similar else "")
    )
