"""Find the projections of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ailora.errors import InputError, ModelError
from ailora.roles.catalog import FAMILIES, FUSED, Match, ends_with, match_family
from ailora.roles.projection import Attention, Projection, Role, parse_role

_SHOWN_MODULES = 12


def find_projections(model: nn.Module, *, role_names: Mapping[str, Role | str] | None = None) -> tuple[Projection, ...]:
    """The projections of `model`, in the order of its modules.

    A module that is used in several places (ALBERT's shared layers) is listed once. A base model that carries PEFT
    layers works too: its projections keep the names that they have without them.

    Args:
        model: a model of transformers, or any module when `role_names` says what is what. Weights are not read:
            a model on the meta device will do.
        role_names: regular expression, searched in the module's name -> role, for modules that no rule knows;
            these go before the rules of the catalog.

    Raises:
        InputError: a regular expression is broken or matches no linear module; a role is unknown.
        ModelError: no rule knows the model, or it keeps several roles in one fused weight.
    """
    named = _compile(role_names or {})
    linear = _linear_modules(model)
    _refuse_idle_patterns(named, linear)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    projections = []
    for name, module in linear.items():
        match = _match_named(named, name) or (match_family(model_type, name) if model_type else None)
        if match is not None:
            projections.append(_projection(name, module, match))
    if not any(p.role in (Role.QUERY, Role.VALUE) for p in projections) and not named:
        raise _unknown_model(model, model_type, linear)
    return tuple(projections)


def _linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of a model (`nn.Linear` and its kin) by the name that they have without PEFT layers.

    PEFT moves a wrapped module to `NAME.base_layer` and puts factors below `NAME.lora_A`.
    """
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def _projection(name: str, module: nn.Linear, match: Match) -> Projection:
    return Projection(
        module=name,
        role=match.role,
        attention=match.attention,
        out_features=module.out_features,
        in_features=module.in_features,
        dtype=str(module.weight.dtype).removeprefix("torch."),
        rule=match.rule,
        rows=((0, module.out_features),),
    )


def _compile(role_names: Mapping[str, Role | str]) -> list[tuple[re.Pattern[str], Role]]:
    compiled = []
    for pattern, role in role_names.items():
        try:
            compiled.append((re.compile(pattern), parse_role(role)))
        except re.error as error:
            raise InputError(f"role_names: {pattern!r} is not a regular expression: {error}") from None
    return compiled


def _refuse_idle_patterns(named: list[tuple[re.Pattern[str], Role]], linear: Mapping[str, nn.Linear]) -> None:
    for pattern, role in named:
        if not any(pattern.search(name) for name in linear):
            raise InputError(
                f"role_names: {pattern.pattern!r} ({role}) matches no linear module; the model has:\n"
                + _listing(linear)
            )


def _match_named(named: list[tuple[re.Pattern[str], Role]], module: str) -> Match | None:
    for pattern, role in named:
        if pattern.search(module):
            attends = role in (Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT)
            return Match(role, Attention.SELF if attends else None, "role_names")
    return None


def _listing(linear: Mapping[str, nn.Linear]) -> str:
    """The linear modules, those of repeated layers folded into one line each."""
    shapes: dict[str, str] = {}
    for name, module in linear.items():
        folded = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        shapes.setdefault(folded, f"  {folded}  ({module.out_features} x {module.in_features})")
    lines = list(shapes.values())
    more = [f"  ... and {len(lines) - _SHOWN_MODULES} more"] if len(lines) > _SHOWN_MODULES else []
    return "\n".join(lines[:_SHOWN_MODULES] + more) or "  (none)"


def _unknown_model(model: nn.Module, model_type: str | None, linear: Mapping[str, nn.Linear]) -> ModelError:
    what = f"model type {model_type!r}" if model_type else f"a {type(model).__name__} without config.model_type"
    if model_type in FUSED:
        fused = [n for n, _ in model.named_modules() if ends_with(FUSED[model_type], n)]
        return ModelError(
            f"{what} keeps query, key and value in one fused weight ({fused[0] if fused else FUSED[model_type]}), "
            "which is not supported yet; supported model types: " + ", ".join(sorted(FAMILIES))
        )
    return ModelError(
        f"no rule knows the roles of {what}. Its linear modules are:\n{_listing(linear)}\n"
        'Name them by hand: role_names={"attn\\\\.wq$": "query", "attn\\\\.wv$": "value"} '
        '(in YAML: adapter: {role_names: {"attn\\\\.wq$": query, "attn\\\\.wv$": value}}). '
        "Known model types: " + ", ".join(sorted(FAMILIES))
    )
