"""A plan: what every adapted projection will get, without a tensor."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from ailora.adapters.task import infer_task_type, parse_task_type, usual_heads
from ailora.errors import InputError, ModelError, parse_choice
from ailora.inits import Init, Policy, parse_init, parse_policy
from ailora.roles import Attention, Projection, Role, find_projections, parse_role

#: A number for every projection, or one per role or per regular expression over module names.
PerModule = float | Mapping[str, float]


class Form(StrEnum):
    """How the adapter lives in the model while it trains; all forms share one file."""

    ANCHORED = "anchored"
    STOCK = "stock"
    RESIDUAL = "residual"


@dataclass(frozen=True)
class PlannedAdapter:
    """What one projection gets.

    Attributes:
        projection: the projection.
        init: how its factors start.
        rank: the rank `r` of its factors while it trains.
        alpha: the alpha that goes with `rank`.
        scaling: the `s` in `dW = s (B A - B0 A0)`: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
    """

    projection: Projection
    init: Init
    rank: int
    alpha: float
    scaling: float

    @property
    def file_rank(self) -> int:
        """The rank that it takes in the file: 2r where there is an anchor, else r."""
        return 2 * self.rank if self.init.anchored else self.rank

    @property
    def trainable(self) -> int:
        """How many numbers it trains in the anchored and the residual form: r (in + out)."""
        return self.rank * (self.projection.in_features + self.projection.out_features)


@dataclass(frozen=True)
class Plan:
    """What an adapter will be, module by module. Holds no tensor and travels as JSON.

    Attributes:
        policy: where the inits come from.
        form: anchored, stock or residual.
        adapters: one entry for each adapted projection, in the order of the model's modules.
        dropout: probability of dropping an entry of the adapter's input.
        rslora: whether the scaling is alpha / sqrt(r) (arXiv 2312.03732).
        dora: whether the adapter is a DoRA (arXiv 2402.09353).
        modules_to_save: modules that are trained whole and travel with the adapter.
        task_type: PEFT's task type, which decides the class of the adapted model.
    """

    policy: Policy
    form: Form
    adapters: tuple[PlannedAdapter, ...]
    dropout: float
    rslora: bool
    dora: bool
    modules_to_save: tuple[str, ...]
    task_type: str | None

    @property
    def modules(self) -> dict[str, tuple[PlannedAdapter, ...]]:
        """The adapters by module: one, or one for each adapted role of a fused weight, in the order of its rows."""
        by_module: dict[str, list[PlannedAdapter]] = {}
        for adapter in self.adapters:
            by_module.setdefault(adapter.projection.module, []).append(adapter)
        return {module: tuple(adapters) for module, adapters in by_module.items()}

    @property
    def trainable(self) -> int:
        """Numbers that the adapters train, heads and other saved modules aside (the stock form trains twice that)."""
        factor = {Form.STOCK: 2}.get(self.form, 1)
        return sum(a.trainable * (factor if a.init.anchored else 1) for a in self.adapters)

    @property
    def file_bytes(self) -> int:
        """Bytes of the adapters' tensors in a float32 file, heads and other saved modules aside."""
        shapes = [(a.projection.shape, a.file_rank) for a in self.adapters]
        return sum(4 * rank * (out + in_) for (out, in_), rank in shapes)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data for JSON; `Plan.from_json` reads it back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        adapters = [
            {**dataclasses.asdict(a.projection), "init": a.init.describe(), "rank": a.rank, "alpha": a.alpha}
            | {"scaling": a.scaling}
            for a in self.adapters
        ]
        return {
            **fields,
            "policy": self.policy.describe(),
            "form": self.form.value,
            "adapters": adapters,
            "modules_to_save": list(self.modules_to_save),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            InputError: the data is not that of a plan.
        """
        try:
            return cls(
                **{
                    **data,
                    "policy": parse_policy(data["policy"]),
                    "form": parse_form(data["form"]),
                    "adapters": tuple(_adapter_from_json(a) for a in data["adapters"]),
                    "modules_to_save": tuple(data["modules_to_save"]),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is not a plan: {type(error).__name__}: {error}") from error


def _adapter_from_json(data: Mapping[str, Any]) -> PlannedAdapter:
    names = {f.name for f in dataclasses.fields(Projection)}
    projection = {key: value for key, value in data.items() if key in names}
    projection |= {
        "role": parse_role(data["role"]),
        "attention": Attention(data["attention"]) if data["attention"] else None,
        "rows": tuple((start, stop) for start, stop in data["rows"]),
        "shape": tuple(data["shape"]),
    }
    init = parse_init(data["init"])
    if init is None:
        raise InputError(f"this is not a plan: {data['module']} has no init")
    return PlannedAdapter(Projection(**projection), init, data["rank"], data["alpha"], data["scaling"])


def parse_form(form: Form | str) -> Form:
    """The form that a name stands for.

    Raises:
        InputError: there is no such form.
    """
    return parse_choice("form", form, Form)


def make_plan(
    model: nn.Module,
    policy: Policy | str | Mapping[str, Any] = "ailora",
    *,
    rank: PerModule = 8,
    alpha: PerModule | None = None,
    roles: Sequence[Role | str] | None = None,
    role_names: Mapping[str, Role | str] | None = None,
    form: Form | str = Form.ANCHORED,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Iterable[str] | None = None,
    task_type: str | None = None,
) -> Plan:
    """Decide what every projection of `model` gets. Reads no weight: a model on the meta device will do.

    Args:
        model: a model of transformers, or any module with `role_names`.
        policy: a preset's name, `{role: init}`, or a `Policy`.
        rank: the rank r, or `{role or regex: rank}`; the first key that fits a module counts.
        alpha: likewise; None means alpha = rank, so that s = 1 (rsLoRA: s = sqrt(r)).
        roles: which roles are adapted; None: those that the policy speaks of, else query and value.
        role_names: `{regex: role}` for modules that no rule knows.
        form: `anchored`, `stock` or `residual`.
        dropout: probability in [0, 1).
        rslora: scaling alpha / sqrt(r) instead of alpha / r.
        dora: train magnitudes too; not in the residual form.
        modules_to_save: names of modules that are trained whole; None: the task type's usual heads.
        task_type: PEFT's name (`SEQ_CLS`, `CAUSAL_LM`, ...); None: from the model's class.

    Raises:
        InputError: an argument out of range, an unknown name, a role that matches nothing, a key that fits nothing.
        ModelError: no rule knows the model.
    """
    policy, form = parse_policy(policy), parse_form(form)
    if isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise InputError(f"dropout {dropout!r} is not allowed: a probability, 0 <= dropout < 1")
    if dora and form is Form.RESIDUAL:
        raise InputError("dora does not go with form 'residual': its magnitudes would start from the residual weight")
    chosen = _choose(find_projections(model, role_names=role_names), policy, roles)
    ranks = _per_module("rank", rank, chosen)
    alphas = _per_module("alpha", alpha, chosen) if alpha is not None else ranks
    task_type = infer_task_type(model) if task_type is None else parse_task_type(task_type)
    saved = usual_heads(model, task_type) if modules_to_save is None else _check_saved(model, modules_to_save)
    plan = Plan(
        policy=policy,
        form=form,
        adapters=tuple(_planned(p, policy, (ranks[p], alphas[p]), rslora=rslora) for p in chosen),
        dropout=float(dropout),
        rslora=bool(rslora),
        dora=bool(dora),
        modules_to_save=saved,
        task_type=task_type,
    )
    _require_one_scaling(plan)
    return plan


def _require_one_scaling(plan: Plan) -> None:
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
    if isinstance(roles, str):
        raise InputError(f"roles is a list of names, such as [{roles}], not the text {roles!r}")
    wanted = policy.usual_roles if roles is None else tuple(dict.fromkeys(parse_role(r) for r in roles))
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
    fits = {key: _fitting(name, key, projections) for key in value}
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


def _fitting(name: str, key: str, projections: tuple[Projection, ...]) -> set[Projection]:
    if key in {role.value for role in Role}:
        return {p for p in projections if p.role == key}
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise InputError(f"{name}: {key!r} is neither a role nor a regular expression: {error}") from None
    return {p for p in projections if pattern.search(p.module)}


def _planned(
    projection: Projection, policy: Policy, rank_and_alpha: tuple[float, float], *, rslora: bool
) -> PlannedAdapter:
    rank, alpha = rank_and_alpha
    where = f"{projection.name} ({projection.out_features} x {projection.in_features})"
    if isinstance(rank, bool) or rank != int(rank) or not 1 <= rank <= projection.max_rank:
        raise InputError(f"rank {rank!r} is not possible for {where}: a whole number from 1 to {projection.max_rank}")
    if isinstance(alpha, bool) or not (alpha > 0 and math.isfinite(alpha)):
        raise InputError(f"alpha {alpha!r} is not allowed for {where}: a positive number")
    init = policy.init_for(projection.role)
    if init is None:
        raise InputError(f"the policy {policy.name!r} has no init for {where}, role {projection.role}")
    scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
    return PlannedAdapter(projection, init, int(rank), float(alpha), float(scaling))


def _check_saved(model: nn.Module, modules_to_save: Iterable[str] | None) -> tuple[str, ...]:
    saved = tuple(modules_to_save or ())
    names = [name for name, _ in model.named_modules() if name]
    for module in saved:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise ModelError(
                f"modules_to_save: the model has no module {module!r}; its top modules are "
                + ", ".join(name for name, _ in model.named_children())
            )
    return saved
