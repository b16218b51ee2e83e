"""Find the projections of a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import nn

from ailora.errors import InputError, ModelError
from ailora.roles.catalog import FAMILIES, LEFT_OUT, match_family
from ailora.roles.fused_layouts import ModelConfig
from ailora.roles.naming_rules import Rule
from ailora.roles.projection import Attention, Projection, Role, parse_role

_SHOWN_MODULES = 12

#: Modules of torch that compute with the weights of their parts themselves.
_BYPASSING: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "nn.TransformerEncoderLayer: in eval mode torch reads the weights of its linear layers "
    "past any adapter",
    nn.MultiheadAttention: "nn.MultiheadAttention: PEFT's LoRA for it rewrites the base weight in every forward pass "
    "and always adapts out_proj too, so that it is not supported",
}


def find_projections(model: nn.Module, *, role_names: Mapping[str, Role | str] | None = None) -> tuple[Projection, ...]:
    """The projections of `model`, in the order of its modules, those of a fused weight in the order of their rows.

    A module that is used in several places (ALBERT's shared layers) is listed once. A base model that carries PEFT
    layers works too: its projections keep the names that they have without them. The parts of a composite model
    (CLIP's towers) are told apart by their own configurations.

    Args:
        model: a model of transformers, or any module when `role_names` says what is what. Weights are not read:
            a model on the meta device will do.
        role_names: regular expression, searched in the module's name -> role, for modules that no rule knows;
            these go before the rules of the catalog.

    Raises:
        InputError: no model; a regular expression is broken or matches no linear module; a role is unknown.
        ModelError: no rule knows the model, or the rows of a fused weight do not fit the configuration's head counts.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model is an nn.Module, not {model!r}")
    named = _compile(role_names or {})
    linear = linear_modules(model)
    _refuse_idle_patterns(named, linear)
    configs = _configs(model)
    projections: list[Projection] = []
    for name, module in linear.items():
        if named_role := _named_role(named, name):
            pattern, role = named_role
            attends = role in (Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT)
            rule = Rule(pattern, (role,), Attention.SELF if attends else None)
            projections += _projections(name, module, rule)
            continue
        for config in _enclosing(configs, name):
            if rule := match_family(config.model_type, name):
                projections += _projections(name, module, rule, config)
                break
    if not any(p.role in (Role.QUERY, Role.VALUE) for p in projections) and not named:
        raise _unknown_model(model, linear)
    return tuple(projections)


def weight_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear map, whichever way it stores its weight; None for a module that is none."""
    names = ("nf", "nx") if type(module).__name__ == "Conv1D" else ("out_features", "in_features")
    out, in_ = (getattr(module, name, None) for name in names)
    # A PEFT layer answers for the layer that it holds, which is listed itself.
    if isinstance(out, int) and isinstance(in_, int) and not hasattr(module, "base_layer"):
        return out, in_
    return None


def collapse_layer_index(module: str) -> str:
    """A module's name with a star for the numbers of its layers."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", module)


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of a model (`nn.Linear`, transformers' `Conv1D`, quantized ones) by their name without PEFT.

    PEFT moves a wrapped module to `NAME.base_layer` and puts factors below `NAME.lora_A`.
    """
    packed = tuple(f"{name}." for name in bypassed(model))
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if weight_shape(module) is not None and ".lora_" not in name and not name.startswith(packed)
    }


def bypassed(model: nn.Module) -> dict[str, str]:
    """The modules that read the weights of their parts past any adapter around them, and how they do."""
    return {
        name: reason
        for name, module in model.named_modules()
        for kind, reason in _BYPASSING.items()
        if isinstance(module, kind)
    }


def _configs(model: nn.Module) -> dict[str, ModelConfig]:
    """The configurations of a model and of its parts, by the name of the module that carries one."""
    configs = {name.removesuffix(".base_layer"): getattr(m, "config", None) for name, m in model.named_modules()}
    return {
        name: config for name, config in configs.items() if config is not None and getattr(config, "model_type", None)
    }


def _enclosing(configs: Mapping[str, ModelConfig], module: str) -> Iterator[ModelConfig]:
    """The configurations of the modules around `module`, from the nearest to the model's own."""
    name = module
    while name:
        name = name.rpartition(".")[0]
        if name in configs:
            yield configs[name]


def _projections(name: str, module: nn.Module, rule: Rule, config: ModelConfig | None = None) -> list[Projection]:
    source = config.model_type if config is not None else f"role_names: {rule.pattern}"
    shape = weight_shape(module)
    assert shape is not None
    try:
        # A rule named by hand has no configuration, and a split that does not look at it.
        layout = rule.split(rule.roles, cast("ModelConfig", config), shape[0])
    except ModelError as error:
        raise ModelError(f"{name} ({shape[0]} x {shape[1]}), a fused weight of {source!r}: {error}") from None
    dtype = _stored_as(module)
    shown = str(layout) if len(rule.roles) > 1 else ""
    return [
        Projection(name, role, rule.attention, layout.rows(role), shape, dtype, source, shown) for role in rule.roles
    ]


def _stored_as(module: nn.Module) -> str:
    """The dtype of a weight, with the class of the tensor or of the layer that holds it quantized."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return type(module).__name__
    dtype = str(weight.dtype).removeprefix("torch.")
    return dtype if type(weight) in (torch.Tensor, nn.Parameter) else f"{dtype} ({type(weight).__name__})"


def _compile(role_names: Mapping[str, Role | str]) -> list[tuple[re.Pattern[str], Role]]:
    if not isinstance(role_names, Mapping):
        raise InputError(
            f"role_names maps regular expressions to roles, such as {{'wq$': 'query'}}, not {role_names!r}"
        )
    compiled = []
    for pattern, role in role_names.items():
        try:
            compiled.append((re.compile(pattern), parse_role(role)))
        except (re.error, TypeError) as error:
            raise InputError(f"role_names: {pattern!r} is not a regular expression: {error}") from None
    return compiled


def _refuse_idle_patterns(named: list[tuple[re.Pattern[str], Role]], linear: Mapping[str, nn.Module]) -> None:
    for pattern, role in named:
        if not any(pattern.search(name) for name in linear):
            raise InputError(
                f"role_names: {pattern.pattern!r} ({role}) matches no linear module; the model has:\n"
                + _listing(linear)
            )


def _named_role(named: list[tuple[re.Pattern[str], Role]], module: str) -> tuple[str, Role] | None:
    return next(((pattern.pattern, role) for pattern, role in named if pattern.search(module)), None)


def _listing(linear: Mapping[str, nn.Module]) -> str:
    """The linear modules, those of repeated layers collapsed into one line each."""
    shapes: dict[str, str] = {}
    for name, module in linear.items():
        line = collapse_layer_index(name)
        shapes.setdefault(line, f"  {line}  ({' x '.join(map(str, weight_shape(module) or ()))})")
    lines = list(shapes.values())
    more = [f"  ... and {len(lines) - _SHOWN_MODULES} more"] if len(lines) > _SHOWN_MODULES else []
    return "\n".join(lines[:_SHOWN_MODULES] + more) or "  (none)"


def _unknown_model(model: nn.Module, linear: Mapping[str, nn.Module]) -> ModelError:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    what = f"model type {model_type!r}" if model_type else f"a {type(model).__name__} without config.model_type"
    if model_type in LEFT_OUT:
        what += f" ({LEFT_OUT[model_type]})"
    for name, reason in list(bypassed(model).items())[:1]:
        what += f" ({name} is an {reason})"
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=3)
    return ModelError(
        f"no rule knows the roles of {what}. Its linear modules are:\n{_listing(linear)}\n"
        'Name them by hand: role_names={"attn\\\\.wq$": "query", "attn\\\\.wv$": "value"} '
        '(in YAML: adapter: {role_names: {"attn\\\\.wq$": query, "attn\\\\.wv$": value}}). '
        f"{len(FAMILIES)} model types are known" + (f", such as {', '.join(near)}" if near else "")
    )
