"""Parameter groups for optimizers, with learning rates by role and factor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from ailora.errors import InputError, unknown_name
from ailora.lora.adapt import get_plan
from ailora.lora.base_model import get_base_model
from ailora.lora.fused_factor import FusedFactor
from ailora.plan.adapter_plan import Plan
from ailora.roles import Role, parse_role

Factor = Literal["A", "B"]
_FACTORS = ("A", "B")


class FactorRoles(NamedTuple):
    """Role and factor of a parameter.

    Attributes:
        roles: Roles that share the parameter. A parameter has several roles only if a fused weight is adapted in the
            stock form; the roles then share a learning rate.
        factor: `A` or `B`.
    """

    roles: tuple[Role, ...]
    factor: Factor


def role_factors(
    model: PeftModel, adapter_name: str = "default", *, plan: Plan | None = None
) -> dict[str, FactorRoles]:
    """Map the name of every trainable parameter in the factors to its roles and its factor, `A` or `B`.

    Modules trained in full (heads), DoRA's magnitudes and frozen factors, such as those of inactive adapters, are not
    included.

    Args:
        model: Model from `adapt` or `apply_plan`.
        adapter_name: PEFT's name for the adapter.
        plan: Plan of an adapter that PEFT initialized. None means the plan that ailora stored with its adapter.

    Returns:
        Name of the parameter -> roles and factor, in the order of `model.named_parameters()`.

    Raises:
        ModelError: `plan` is None, and the model has no adapter of this name from ailora.
    """
    by_id: dict[int, FactorRoles] = {}
    for module, adapters in (plan or get_plan(model, adapter_name)).modules.items():
        layer = get_base_model(model).get_submodule(module)
        assert isinstance(layer, LoraLayer)
        roles = tuple(adapter.projection.role for adapter in adapters)
        factor_modules: tuple[tuple[Factor, nn.Module], ...] = (
            ("A", layer.lora_A[adapter_name]),
            ("B", layer.lora_B[adapter_name]),
        )
        for factor, factor_module in factor_modules:
            # A fused factor has a part for each role. Any other factor belongs to all roles of the module.
            parts = factor_module.parts if isinstance(factor_module, FusedFactor) else None
            by_roles = {(Role(role),): part for role, part in parts.items()} if parts else {roles: factor_module}
            for part_roles, part in by_roles.items():
                by_id |= {id(parameter): FactorRoles(part_roles, factor) for parameter in part.parameters()}
    named = model.named_parameters()
    return {name: by_id[id(p)] for name, p in named if p.requires_grad and id(p) in by_id}


@dataclass(frozen=True)
class Multipliers:
    """Multipliers of the learning rate, by role and factor.

    Attributes:
        by_role: (role, factor) -> multiplier. None as the role means all roles; None as the factor means both factors.
    """

    by_role: Mapping[tuple[Role | None, Factor | None], float]

    def multiplier(self, role: Role, factor: Factor) -> float:
        """Return the multiplier of a factor of a role: the product of all matching entries."""
        keys: list[tuple[Role | None, Factor | None]] = [(role, factor), (role, None), (None, factor)]
        return math.prod(self.by_role.get(key, 1.0) for key in keys)

    def validate_adapted(self, roles: Iterable[Role]) -> None:
        """Validate that every role with a multiplier has an adapter.

        Raises:
            InputError: A role has a multiplier, but no adapter.
        """
        adapted = set(roles)
        for role, _ in self.by_role:
            if role is not None and role not in adapted:
                names = ", ".join(sorted(adapted))
                raise InputError(f"adapter.learning_rates: role {role} is not adapted; adapted: {names}")


def parse_multipliers(given: Mapping[str, float | Mapping[str, float]] | None) -> Multipliers:
    """Parse `adapter.learning_rates`: `{query: 0.3, B: 16}`, or `{query: {A: 0.3, B: 5}}`.

    A multiplier for `B` alone is LoRA+ (arXiv 2402.12354).

    Args:
        given: Multipliers by role, by factor for all roles, or by role and factor. None means no multipliers.

    Returns:
        The multipliers.

    Raises:
        InputError: A key is neither a role nor a factor, or a factor has multipliers by role.
    """
    by_role: dict[tuple[Role | None, Factor | None], float] = {}
    for key, value in (given or {}).items():
        role = None if key in _FACTORS else parse_role(key)
        if not isinstance(value, Mapping):
            all_roles_factor = _parse_factor(key) if role is None else None
            by_role[role, all_roles_factor] = float(value)
            continue
        if role is None:
            raise InputError(f"adapter.learning_rates.{key}: expected a number, got {dict(value)!r}")
        for factor, multiplier in value.items():
            by_role[role, _parse_factor(factor)] = float(multiplier)
    return Multipliers(by_role)


def _parse_factor(name: str) -> Factor:
    if name not in _FACTORS:
        raise unknown_name("factor in adapter.learning_rates", name, _FACTORS)
    return name  # type: ignore[return-value]


def split_param_groups(
    groups: Sequence[dict[str, Any]], model: PeftModel, multipliers: Multipliers, *, plan: Plan | None = None
) -> list[dict[str, Any]]:
    """Split an optimizer's parameter groups to give each factor its learning rate.

    Args:
        groups: `optimizer.param_groups`. Split them before creating a scheduler, whose constructor reads `lr`.
        model: Model with the parameters.
        multipliers: Multipliers of the learning rate.
        plan: Plan of an adapter that PEFT initialized. None means the plan that ailora stored with its adapter.

    Returns:
        Groups in a fixed order, each with an entry `multiplier`.

    Raises:
        InputError: Roles that share a parameter have different multipliers.
        ModelError: `plan` is None, and the model has no adapter `default` from ailora.
    """
    factors = role_factors(model, plan=plan)
    multiplier_by_id = {
        id(p): _shared_multiplier(factors[name], name, multipliers)
        for name, p in model.named_parameters()
        if name in factors
    }
    split = []
    for group in groups:
        # Sorted, because a training checkpoint stores optimizer states by position, and users list roles in any order.
        for multiplier in sorted({multiplier_by_id.get(id(p), 1.0) for p in group["params"]}):
            members = [p for p in group["params"] if multiplier_by_id.get(id(p), 1.0) == multiplier]
            split.append({**group, "params": members, "lr": group["lr"] * multiplier, "multiplier": multiplier})
    return split


def _shared_multiplier(parameter: FactorRoles, name: str, multipliers: Multipliers) -> float:
    values = {multipliers.multiplier(role, parameter.factor) for role in parameter.roles}
    if len(values) > 1:
        roles = " and ".join(parameter.roles)
        raise InputError(
            f"adapter.learning_rates: {roles} share the parameter {name} in the stock form: give these roles the "
            "same rate, or set form: anchored"
        )
    return values.pop()
