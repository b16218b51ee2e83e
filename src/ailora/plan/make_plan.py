"""Build plans from a model, a policy and the user's options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ailora.errors import InputError, ModelError
from ailora.formatting import is_finite, is_real
from ailora.inits import Policy, PolicySpec, parse_policy
from ailora.module_pattern import ModulePatterns
from ailora.plan.adapter_plan import (
    REGEX_OPERATORS,
    Form,
    LoraOptions,
    Plan,
    PlannedAdapter,
    compute_scaling,
    parse_form,
)
from ailora.plan.task_type import find_frozen_heads, infer_task_type, parse_task_type
from ailora.roles import Projection, Role, find_projections, parse_role

#: A number for all projections, or a mapping from roles or regular expressions for module names to numbers.
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
    """Choose the adapter settings of every projection of a model.

    No weight is read, so the model may be on the meta device.

    Args:
        model: A model of transformers, or any module if `role_names` is given.
        policy: Name of a preset, a mapping `{role: init}`, or a `Policy`.
        rank: Rank r, or a mapping `{role or regex: rank}`, in which the first matching key counts.
        alpha: Numerator of the scaling, or a mapping as for `rank`. None means alpha = rank, a scaling of 1, or of
            sqrt(r) with `rslora`.
        roles: Roles to adapt. None means the roles in the policy, or query and value if the policy names no role.
        role_names: Mapping `{regex: role}`, which takes precedence over the naming rules.
        modules: Regular expression to search for in module names. Only matching modules are adapted, for example those
            of the language model inside a multimodal model.
        form: `anchored`, `stock` or `residual`.
        dropout: Probability of dropping an entry of the adapter's input, in [0, 1).
        rslora: Scale by alpha / sqrt(r) instead of alpha / r.
        dora: Also train magnitudes (DoRA). Not available in the residual form.
        modules_to_save: Names of modules to train in full. None means the new heads that PEFT would keep frozen.
        task_type: Task type of PEFT (`SEQ_CLS`, `CAUSAL_LM`, ...). None means the task type of the model's class.
        couple_roles: Let each adapter of a fused weight train all rows of the weight. By default, each adapter trains
            only the rows of its role, as if the projections were separate.

    Returns:
        Plan of all adapters, plain data without tensors.

    Raises:
        InputError: An argument is invalid, or a role, key or pattern matches no module.
        ModelError: No naming rule fits the model.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        >>> plan = make_plan(BertModel(config), "ailora", rank={"query": 4, "value": 2})
        >>> [(a.projection.name, a.rank) for a in plan.adapters[:2]]
        [('encoder.layer.0.attention.self.query', 4), ('encoder.layer.0.attention.self.value', 2)]
    """
    policy, form = parse_policy(policy), parse_form(form)
    if not is_real(dropout) or not 0 <= dropout < 1:
        raise InputError(f"dropout must be at least 0 and below 1, got {dropout!r}")
    for name, flag in {"rslora": rslora, "dora": dora, "couple_roles": couple_roles}.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name} must be True or False, got {flag!r}")
    if dora and form is Form.RESIDUAL:
        raise InputError(
            "dora cannot be combined with form 'residual': its magnitudes would start from the residual weight"
        )
    projections = _filter_by_module(find_projections(model, role_names=role_names), modules)
    targets = _select_roles(projections, policy, roles)
    ranks = _resolve_numbers("rank", rank, targets)
    alphas = _resolve_numbers("alpha", alpha, targets) if alpha is not None else ranks
    task_type = infer_task_type(model) if task_type is None else parse_task_type(task_type)
    saved_modules = (
        find_frozen_heads(model, task_type)
        if modules_to_save is None
        else _parse_modules_to_save(model, modules_to_save)
    )
    _validate_disjoint(targets, saved_modules)
    plan = Plan(
        policy=policy,
        form=form,
        adapters=tuple(_plan_projection(p, policy, (ranks[p], alphas[p]), rslora=rslora) for p in targets),
        options=LoraOptions(float(dropout), rslora, dora, saved_modules, task_type),
        couple_roles=couple_roles,
    )
    _validate_one_scaling(plan)
    return plan


def _filter_by_module(projections: tuple[Projection, ...], modules: str | None) -> tuple[Projection, ...]:
    if modules is None:
        return projections
    if not isinstance(modules, str):
        raise InputError(f"modules must be a regular expression, got {modules!r}")
    patterns = ModulePatterns("modules")
    matching = tuple(p for p in projections if patterns.search(modules, p.module))
    if not matching:
        example = projections[0].module
        raise InputError(f"modules: {modules!r} matches no projection; the first projection is {example}")
    return matching


def _validate_disjoint(targets: tuple[Projection, ...], saved_modules: tuple[str, ...]) -> None:
    """Refuse adapters inside modules that `modules_to_save` trains in full."""
    # PEFT wraps every module whose name ends with a saved name, together with its submodules.
    for projection in targets:
        parts = projection.module.split(".")
        enclosing = [".".join(parts[: i + 1]) for i in range(len(parts))]
        for name in saved_modules:
            if any(module.endswith(name) for module in enclosing):
                raise InputError(
                    f"modules_to_save: {name!r} is or contains {projection.module}, which gets an adapter: remove "
                    f"{name!r} from modules_to_save, or choose roles or modules without {projection.module}"
                )


def _validate_one_scaling(plan: Plan) -> None:
    """Refuse different scalings for the roles of a fused weight, because the roles share a LoRA module."""
    for adapters in plan.modules.values():
        if len({a.scaling for a in adapters}) > 1:
            scalings = ", ".join(f"{a.projection.name} s = {a.scaling:g}" for a in adapters)
            raise InputError(
                f"the roles of a fused weight share one scaling, but {scalings}: choose other ranks or alphas"
            )


def _select_roles(
    projections: tuple[Projection, ...], policy: Policy, roles: Sequence[Role | str] | None
) -> tuple[Projection, ...]:
    """Return the projections of the roles to adapt.

    Raises:
        InputError: A role has no init or no projection, or no role is given.
    """
    # A string is iterable too, but would be read letter by letter.
    if roles is not None and (isinstance(roles, str) or not isinstance(roles, Iterable)):
        raise InputError(f"roles must be a list of names, such as ['query', 'value'], got {roles!r}")
    selected = policy.default_roles if roles is None else tuple(dict.fromkeys(parse_role(r) for r in roles))
    if not selected:
        raise InputError("roles is empty: name at least one of " + ", ".join(r.value for r in Role))
    present = {p.role for p in projections}
    for role in selected:
        if policy.init_for(role) is None:
            raise InputError(
                f"the policy {policy.name!r} has no init for the role {role}: add one, or remove the role from `roles`"
            )
        if role not in present:
            roles_present = ", ".join(r.value for r in Role if r in present) or "none"
            raise InputError(f"no projection has the role {role}; this model has: {roles_present}")
    return tuple(p for p in projections if p.role in selected)


def _resolve_numbers(name: str, value: PerModule, projections: tuple[Projection, ...]) -> dict[Projection, float]:
    """Return the rank or alpha of each projection: `value`, or its entry with the first matching key.

    Raises:
        InputError: A key matches no projection, or no key matches a projection.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(projections, value)
    patterns = ModulePatterns(f"{name} (a role or a regular expression)")
    matches = {key: _match_key(patterns, key, projections) for key in value}
    for key, matching in matches.items():
        if not matching:
            raise InputError(f"{name}: {key!r} matches neither the role nor the name of an adapted projection")
    numbers: dict[Projection, float] = {}
    for projection in projections:
        key = next((key for key in value if projection in matches[key]), None)
        if key is None:
            raise InputError(
                f"{name}: no key of {dict(value)!r} matches {projection.name}; add a key ('' matches every module)"
            )
        numbers[projection] = value[key]
    return numbers


def _match_key(patterns: ModulePatterns, key: str, projections: tuple[Projection, ...]) -> set[Projection]:
    if key in {role.value for role in Role}:
        return {p for p in projections if p.role == key}
    return {p for p in projections if patterns.search(key, p.module)}


def _plan_projection(
    projection: Projection, policy: Policy, rank_and_alpha: tuple[float, float], *, rslora: bool
) -> PlannedAdapter:
    rank, alpha = rank_and_alpha
    where = f"{projection.name} ({projection.out_features} x {projection.in_features})"
    if not is_finite(rank) or rank != int(rank) or not 1 <= rank <= projection.max_rank:
        raise InputError(f"rank must be a whole number from 1 to {projection.max_rank}, got {rank!r} ({where})")
    init = policy.init_for(projection.role)
    if init is None:
        raise InputError(f"the policy {policy.name!r} has no init for {where}, role {projection.role}")
    scaling = compute_scaling(rank, alpha, rslora=rslora, where=f" for {where}")
    return PlannedAdapter(projection, init, int(rank), float(alpha), scaling)


def _parse_modules_to_save(model: nn.Module, modules_to_save: Iterable[str]) -> tuple[str, ...]:
    if isinstance(modules_to_save, str) or not isinstance(modules_to_save, Iterable):
        raise InputError(f"modules_to_save must be a list of names, such as ['classifier'], got {modules_to_save!r}")
    saved = tuple(modules_to_save)
    if not all(isinstance(name, str) and name for name in saved):
        raise InputError(f"modules_to_save must be a list of names, such as ['classifier'], got {modules_to_save!r}")
    for name in saved:
        if not REGEX_OPERATORS.isdisjoint(name):
            raise InputError(f"modules_to_save: {name!r} has characters that PEFT reads as a regular expression")
    names = [name for name, _ in model.named_modules() if name]
    for module in saved:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise ModelError(
                f"modules_to_save: the model has no module {module!r}; its top-level modules are "
                + ", ".join(name for name, _ in model.named_children())
            )
    return saved
