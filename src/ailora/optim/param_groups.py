"""Parameter groups of the optimizer: learning rates by role and by factor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from ailora.errors import InputError, unknown_name
from ailora.lora.adapt import get_plan
from ailora.lora.fused_factor import FusedFactor
from ailora.lora.inject import get_base_model
from ailora.plan.adapter_plan import Plan
from ailora.roles import Role, parse_role

Factor = Literal["A", "B"]
_FACTORS = ("A", "B")


class FactorRoles(NamedTuple):
    """Role and factor of a parameter.

    Attributes:
        roles: the roles whose factor it holds: one, but for a fused projection in the stock form, whose factor is one
            parameter for all of its adapted roles and can only take a learning rate that they share.
        factor: `A` or `B`.
    """

    roles: tuple[Role, ...]
    factor: Factor


def role_factors(
    model: PeftModel, adapter_name: str = "default", *, plan: Plan | None = None
) -> dict[str, FactorRoles]:
    """Return the role and the factor of every trained factor parameter, in all forms.

    Heads and other modules that are saved whole, and DoRA's magnitudes, are no factors and are left out, as are factors
    that do not train (those of an adapter that is not active).

    Args:
        model: a model that `adapt` or `apply_plan` returned.
        adapter_name: PEFT's name for the adapter.
        plan: what it was planned as, where PEFT itself made it; None: it is ours, and says so.

    Returns:
        The name of the parameter, as in `model.named_parameters()` and in its order, -> what it is.

    Raises:
        ModelError: the model has no such adapter of ours.
    """
    found: dict[int, FactorRoles] = {}
    for module, group in (plan or get_plan(model, adapter_name)).modules.items():
        layer = get_base_model(model).get_submodule(module)
        assert isinstance(layer, LoraLayer)
        roles = tuple(adapter.projection.role for adapter in group)
        sides: tuple[tuple[Factor, object], ...] = (("A", layer.lora_A), ("B", layer.lora_B))
        for factor, holders in sides:
            holder = holders[adapter_name]  # type: ignore[index]
            parts = holder.parts if isinstance(holder, FusedFactor) else None
            owners = {(Role(role),): part for role, part in parts.items()} if parts else {roles: holder}
            for owner, part in owners.items():
                found |= {id(parameter): FactorRoles(owner, factor) for parameter in part.parameters()}
    named = model.named_parameters()
    return {name: found[id(p)] for name, p in named if p.requires_grad and id(p) in found}


@dataclass(frozen=True)
class Multipliers:
    """Multiples of the learning rate, by role and factor.

    Attributes:
        by_role: (role, factor) -> its multiple; None in the place of a role or factor stands for each.
    """

    by_role: Mapping[tuple[Role | None, Factor | None], float]

    def multiplier(self, role: Role, factor: Factor) -> float:
        """Return the multiple for a factor of a role: the product of all that concern it."""
        keys: list[tuple[Role | None, Factor | None]] = [(role, factor), (role, None), (None, factor)]
        return math.prod(self.by_role.get(key, 1.0) for key in keys)

    def validate_adapted(self, roles: Iterable[Role]) -> None:
        """Refuse a multiple for a role that has no adapter.

        Raises:
            InputError: which role, and those that are adapted.
        """
        adapted = set(roles)
        for role, _ in self.by_role:
            if role is not None and role not in adapted:
                names = ", ".join(sorted(adapted))
                raise InputError(f"adapter.learning_rates: the role {role} is not adapted; adapted: {names}")


def parse_multipliers(given: Mapping[str, float | Mapping[str, float]] | None) -> Multipliers:
    """Parse `adapter.learning_rates`: `{query: 0.3, B: 16}`, or `{query: {A: 0.3, B: 5}}`.

    A multiple for `B` alone is LoRA+ (arXiv 2402.12354).

    Args:
        given: multiples by role, by `A` and `B` for every role, or by both.

    Raises:
        InputError: neither a role nor a factor.
    """
    by_role: dict[tuple[Role | None, Factor | None], float] = {}
    for key, value in (given or {}).items():
        role = None if key in _FACTORS else parse_role(key)
        if not isinstance(value, Mapping):
            by_role[role, _factor(key) if role is None else None] = float(value)
            continue
        if role is None:
            raise InputError(f"adapter.learning_rates.{key}: a number is expected below A and B")
        for factor, multiple in value.items():
            by_role[role, _factor(factor)] = float(multiple)
    return Multipliers(by_role)


def _factor(name: str) -> Factor:
    if name not in _FACTORS:
        raise unknown_name("factor in adapter.learning_rates", name, _FACTORS)
    return name  # type: ignore[return-value]


def split_param_groups(
    groups: Sequence[dict[str, Any]], model: PeftModel, given: Multipliers, *, plan: Plan | None = None
) -> list[dict[str, Any]]:
    """Split an optimizer's parameter groups so that every factor has its learning rate.

    Args:
        groups: `optimizer.param_groups`, which have a rate but no scheduler yet.
        model: whose parameters they hold.
        given: the multiples.
        plan: as `role_factors`.

    Returns:
        Groups in a fixed order, each with its `multiplier`: a checkpoint's states find their groups again.

    Raises:
        InputError: roles that share a parameter have different multiples.
    """
    factors = role_factors(model, plan=plan)
    multiple = {id(p): _shared(factors[name], name, given) for name, p in model.named_parameters() if name in factors}
    split = []
    for group in groups:
        for value in sorted({multiple.get(id(p), 1.0) for p in group["params"]}):
            members = [p for p in group["params"] if multiple.get(id(p), 1.0) == value]
            split.append({**group, "params": members, "lr": group["lr"] * value, "multiplier": value})
    return split


def _shared(owner: FactorRoles, name: str, given: Multipliers) -> float:
    values = {given.multiplier(role, owner.factor) for role in owner.roles}
    if len(values) > 1:
        roles = " and ".join(owner.roles)
        raise InputError(
            f"adapter.learning_rates: {roles} share the parameter {name} in the stock form and cannot have different "
            "rates: give them one, or use form: anchored"
        )
    return values.pop()
