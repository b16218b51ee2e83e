"""Make a plan: the adapter settings of every projection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ailora.errors import InputError, ModelError
from ailora.inits import Policy, PolicySpec, parse_policy
from ailora.module_pattern import ModulePatterns
from ailora.plan.adapter_plan import Form, LoraOptions, Plan, PlannedAdapter, parse_form
from ailora.plan.task_type import default_heads, infer_task_type, parse_task_type
from ailora.roles import Projection, Role, find_projections, parse_role

#: Scalings between this and its inverse leave the factors room in float32.
_LEAST_SCALING = 1e-30
#: Ranks and scalings of larger numbers are not finite.
_LARGEST = 1e300

#: A number for every projection, or one per role or per regular expression over module names.
PerModule = float | Mapping[str, float]


def make_plan(
    model: nn.Module,
    policy: PolicySpec = "ailora",
    *,
    rank: PerModule = 8,
    alpha: PerModule | None = None,
    roles: Sequence[Role | str] | None = None,
    role_names: Mapping[str, Role | str] | None = None,
    modules: str | None = None,
    form: Form | str = Form.ANCHORED,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Iterable[str] | None = None,
    task_type: str | None = None,
    couple_roles: bool = False,
) -> Plan:
    """Decide the adapter settings of every projection of a model. Reads no weight: a meta-device model will do.

    Args:
        model: a model of transformers, or any module with `role_names`.
        policy: a preset's name, `{role: init}`, or a `Policy`.
        rank: the rank r, or `{role or regex: rank}`; the first key that fits a module counts.
        alpha: likewise; None means alpha = rank, so that s = 1 (rsLoRA: s = sqrt(r)).
        roles: which roles are adapted; None: those that the policy speaks of, else query and value.
        role_names: `{regex: role}` for modules that no rule knows.
        modules: regular expression; only modules whose names it is found in are adapted, such as the language model of
            a multimodal one.
        form: `anchored`, `stock` or `residual`.
        dropout: probability in [0, 1).
        rslora: scaling alpha / sqrt(r) instead of alpha / r.
        dora: train magnitudes too; not in the residual form.
        modules_to_save: names of modules that are trained whole; None: the task type's usual heads.
        task_type: PEFT's name (`SEQ_CLS`, `CAUSAL_LM`, ...); None: from the model's class.
        couple_roles: let the adapter of a fused weight train all its rows; else each role trains its own, as in a model
            with separate projections.

    Returns:
        The plan, plain data without tensors.

    Raises:
        InputError: an argument out of range, an unknown name, a role that matches nothing, a key that fits nothing.
        ModelError: no rule knows the model.
    """
    policy, form = parse_policy(policy), parse_form(form)
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise InputError(f"dropout {dropout!r} is not allowed: a probability, 0 <= dropout < 1")
    for name, flag in {"rslora": rslora, "dora": dora, "couple_roles": couple_roles}.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name} {flag!r} is not allowed: True or False")
    if dora and form is Form.RESIDUAL:
        raise InputError("dora does not go with form 'residual': its magnitudes would start from the residual weight")
    projections = _within(find_projections(model, role_names=role_names), modules)
    chosen = _choose(projections, policy, roles)
    ranks = _per_module("rank", rank, chosen)
    alphas = _per_module("alpha", alpha, chosen) if alpha is not None else ranks
    task_type = infer_task_type(model) if task_type is None else parse_task_type(task_type)
    saved = default_heads(model, task_type) if modules_to_save is None else _check_saved(model, modules_to_save)
    _validate_disjoint(chosen, saved)
    plan = Plan(
        policy=policy,
        form=form,
        adapters=tuple(_planned(p, policy, (ranks[p], alphas[p]), rslora=rslora) for p in chosen),
        options=LoraOptions(float(dropout), rslora, dora, saved, task_type),
        couple_roles=couple_roles,
    )
    _validate_one_scaling(plan)
    return plan


def _within(projections: tuple[Projection, ...], modules: str | None) -> tuple[Projection, ...]:
    """The projections of the modules that a regular expression finds."""
    if modules is None:
        return projections
    if not isinstance(modules, str):
        raise InputError(f"modules is a regular expression, not {modules!r}")
    patterns = ModulePatterns("modules")
    found = tuple(p for p in projections if patterns.search(modules, p.module))
    if not found:
        raise InputError(f"modules: {modules!r} finds none of the model's projections, such as {projections[0].module}")
    return found


def _validate_disjoint(chosen: tuple[Projection, ...], saved: tuple[str, ...]) -> None:
    """A module that is trained whole takes what is in it along, adapters too. PEFT looks at the ends of names."""
    for projection in chosen:
        parts = projection.module.split(".")
        around = [".".join(parts[: i + 1]) for i in range(len(parts))]
        for name in saved:
            if any(module.endswith(name) for module in around):
                raise InputError(f"modules_to_save: {name!r} is, or holds, {projection.module}, which gets an adapter")


def _validate_one_scaling(plan: Plan) -> None:
    """A fused weight gets one LoRA, which has one scaling."""
    for adapters in plan.modules.values():
        if len({a.scaling for a in adapters}) > 1:
            scalings = ", ".join(f"{a.projection.name} s = {a.scaling:g}" for a in adapters)
            raise InputError(
                f"the roles of a fused weight share one scaling, but {scalings}: choose ranks and alphas that agree"
            )


def _choose(
    projections: tuple[Projection, ...], policy: Policy, roles: Sequence[Role | str] | None
) -> tuple[Projection, ...]:
    """The projections that are adapted. A role that is asked for and matches nothing is an error, never a no-op."""
    if roles is not None and (isinstance(roles, str) or not isinstance(roles, Iterable)):
        raise InputError(f"roles is a list of names, such as ['query', 'value'], not {roles!r}")
    wanted = policy.default_roles if roles is None else tuple(dict.fromkeys(parse_role(r) for r in roles))
    if not wanted:
        raise InputError("roles is empty: name at least one of " + ", ".join(r.value for r in Role))
    present = {p.role for p in projections}
    for role in wanted:
        if policy.init_for(role) is None:
            raise InputError(f"the policy {policy.name!r} has no init for the role {role}: name one or leave it out")
        if role not in present:
            has = ", ".join(r.value for r in Role if r in present) or "none"
            raise InputError(f"no projection has the role {role}; this model has: {has}")
    return tuple(p for p in projections if p.role in wanted)


def _per_module(name: str, value: PerModule, projections: tuple[Projection, ...]) -> dict[Projection, float]:
    """`value` for each projection: the number itself, or that of the first key that is its role or a regex for it."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(projections, value)
    patterns = ModulePatterns(f"{name} (a role or a regular expression)")
    fits = {key: _fitting(patterns, key, projections) for key in value}
    for key, fitting in fits.items():
        if not fitting:
            raise InputError(f"{name}: {key!r} is neither the role nor part of the name of an adapted module")
    found = {p: next((value[key] for key in value if p in fits[key]), None) for p in projections}
    for projection, number in found.items():
        if number is None:
            raise InputError(
                f"{name}: no key of {dict(value)!r} fits {projection.name}; add one ('' fits every module)"
            )
    return {projection: number for projection, number in found.items() if number is not None}


def _fitting(patterns: ModulePatterns, key: str, projections: tuple[Projection, ...]) -> set[Projection]:
    if key in {role.value for role in Role}:
        return {p for p in projections if p.role == key}
    return {p for p in projections if patterns.search(key, p.module)}


def _planned(
    projection: Projection, policy: Policy, rank_and_alpha: tuple[float, float], *, rslora: bool
) -> PlannedAdapter:
    rank, alpha = rank_and_alpha
    where = f"{projection.name} ({projection.out_features} x {projection.in_features})"
    if (
        isinstance(rank, bool)
        or not isinstance(rank, int | float)
        or not math.isfinite(rank)
        or rank != int(rank)
        or not 1 <= rank <= projection.max_rank
    ):
        raise InputError(f"rank {rank!r} is not possible for {where}: a whole number from 1 to {projection.max_rank}")
    if not _is_number(alpha) or alpha <= 0:
        raise InputError(
            f"alpha {alpha!r} is not allowed for {where}: expected a number above 0 and below {_LARGEST:g}"
        )
    init = policy.init_for(projection.role)
    if init is None:
        raise InputError(f"the policy {policy.name!r} has no init for {where}, role {projection.role}")
    scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
    if not _LEAST_SCALING <= scaling <= 1 / _LEAST_SCALING:
        raise InputError(f"alpha {alpha!r} is not allowed for {where}: a scaling of {scaling:g} is beyond float32")
    return PlannedAdapter(projection, init, int(rank), float(alpha), float(scaling))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _check_saved(model: nn.Module, modules_to_save: Iterable[str]) -> tuple[str, ...]:
    if isinstance(modules_to_save, str) or not isinstance(modules_to_save, Iterable):
        raise InputError(f"modules_to_save is a list of names, such as ['classifier'], not {modules_to_save!r}")
    saved = tuple(modules_to_save)
    if not all(isinstance(name, str) and name for name in saved):
        raise InputError(f"modules_to_save is a list of names, such as ['classifier'], not {modules_to_save!r}")
    names = [name for name, _ in model.named_modules() if name]
    for module in saved:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise ModelError(
                f"modules_to_save: the model has no module {module!r}; its top modules are "
                + ", ".join(name for name, _ in model.named_children())
            )
    return saved
