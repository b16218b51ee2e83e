"""The plan: adapter settings of every adapted projection, without a tensor."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ailora.errors import InputError, parse_choice
from ailora.inits import Init, Policy, parse_init, parse_policy
from ailora.plan.task_type import TASKS
from ailora.roles import Attention, Projection, Role, parse_role
from ailora.roles.fused_layout import Rows

#: PEFT compiles the names of `modules_to_save` as regular expressions.
_NOT_IN_NAMES = frozenset(r"*+?{}()[]\^$|")
# The normal numbers of float16. The factors that are decomposed from a weight are of the size 1 / sqrt(scaling) and
# their product of 1 / scaling, so that training, export or a server in half precision loses them beyond. bfloat16 and
# float32 have more room; the range is the same for all, as an adapter of one dtype is read in another.
_MIN_SCALING, _MAX_SCALING = 2.0**-14, 65504.0


class Form(StrEnum):
    """The form in which an adapter trains; all forms share one file."""

    ANCHORED = "anchored"
    STOCK = "stock"
    RESIDUAL = "residual"


@dataclass(frozen=True)
class PlannedAdapter:
    """Adapter settings of one projection.

    Attributes:
        projection: The projection.
        init: The init of its factors.
        rank: Rank `r` of the factors in training.
        alpha: LoRA's alpha.
        scaling: The `s` in `dW = s (B A - B0 A0)`: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
    """

    projection: Projection
    init: Init
    rank: int
    alpha: float
    scaling: float

    @property
    def file_rank(self) -> int:
        """Rank in the file: 2r for an anchored init, else r."""
        return 2 * self.rank if self.init.anchored else self.rank

    @property
    def trainable(self) -> int:
        """Number of trainable parameters in the anchored and the residual form: r (in + out)."""
        return self.rank * (self.projection.in_features + self.projection.out_features)


@dataclass(frozen=True)
class LoraOptions:
    """Options passed to PEFT's `LoraConfig` unchanged.

    Attributes:
        dropout: Probability of dropping an entry of the adapter's input.
        rslora: Whether the scaling is alpha / sqrt(r) (arXiv 2312.03732).
        dora: Whether the adapter is a DoRA (arXiv 2402.09353).
        modules_to_save: Modules that train in full and are saved with the adapter.
        task_type: PEFT's task type, which selects the class of the adapted model.
    """

    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    task_type: str | None = None


@dataclass(frozen=True)
class Plan:
    """Adapter settings of a model, without tensors; `to_dict` gives them as JSON.

    Attributes:
        policy: The policy that chose the inits.
        form: Anchored, stock or residual.
        adapters: An entry for each adapted projection, in the order of the model's modules.
        options: PEFT's options.
        couple_roles: Whether the adapter of a fused weight trains all rows, instead of each role its own rows.

    Examples:
        >>> from ailora import make_plan
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> plan = make_plan(model, rank=4)
        >>> plan == Plan.from_dict(plan.to_dict())
        True
    """

    policy: Policy
    form: Form
    adapters: tuple[PlannedAdapter, ...]
    options: LoraOptions = LoraOptions()
    couple_roles: bool = False

    @property
    def modules(self) -> dict[str, tuple[PlannedAdapter, ...]]:
        """Adapters of each module: one, or one for each adapted role of a fused weight, in the order of its rows."""
        by_module: dict[str, list[PlannedAdapter]] = {}
        for adapter in self.adapters:
            by_module.setdefault(adapter.projection.module, []).append(adapter)
        return {module: tuple(adapters) for module, adapters in by_module.items()}

    def trained_rows(self, projection: Projection) -> Rows:
        """Return the rows of the module's weight trained by the `B` of a projection."""
        return ((0, projection.shape[0]),) if self.couple_roles else projection.rows

    @property
    def trainable(self) -> int:
        """Number of trainable parameters of the adapters, without heads and other saved modules."""
        return sum(self._trainable(a) for a in self.adapters)

    def _trainable(self, adapter: PlannedAdapter) -> int:
        if self.form is Form.STOCK:
            return adapter.file_rank * sum(adapter.projection.shape)
        return adapter.rank * sum(adapter.projection.shape) if self.couple_roles else adapter.trainable

    @property
    def counts(self) -> dict[Role, int]:
        """Number of adapted projections of each role."""
        return dict(Counter(a.projection.role for a in self.adapters))

    def __str__(self) -> str:
        starts = {a.projection.role: ", ".join(a.init.to_dict().values()) for a in self.adapters}
        roles = "; ".join(f"{count} {role} ({starts[role]})" for role, count in self.counts.items())
        return f"{self.policy.name}, {self.form} form: {roles}; {self.trainable:,} trainable parameters"

    @property
    def file_bytes(self) -> int:
        """Bytes of the adapters' tensors in a float32 file, without heads and other saved modules."""
        shapes = [(a.projection.shape, a.file_rank) for a in self.adapters]
        return sum(4 * rank * (out + in_) for (out, in_), rank in shapes)

    def to_dict(self) -> dict[str, object]:
        """Return the plan as plain data for JSON; `Plan.from_dict` reads it back."""
        adapters = [
            {**dataclasses.asdict(a.projection), "init": a.init.to_dict(), "rank": a.rank, "alpha": a.alpha}
            | {"scaling": a.scaling}
            for a in self.adapters
        ]
        return {
            "policy": self.policy.to_dict(),
            "form": self.form.value,
            "adapters": adapters,
            "couple_roles": self.couple_roles,
            **dataclasses.asdict(self.options),
            "modules_to_save": list(self.options.modules_to_save),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Parse the data of `to_dict`.

        Raises:
            InputError: The data is not a plan.
        """
        try:
            rest = dict(data)
            policy, form = parse_policy(rest.pop("policy")), parse_form(rest.pop("form"))
            adapters = tuple(_adapter_from_dict(a) for a in rest.pop("adapters"))
            couple_roles = bool(rest.pop("couple_roles", False))
            rest["modules_to_save"] = tuple(rest["modules_to_save"])
            # Plans of earlier versions have the key, with null unless it was used.
            if rest.pop("layer_replication", None) is not None:
                raise ValueError("layer_replication is not supported")
            missing = {"dropout", "rslora", "dora", "task_type"} - rest.keys()
            if missing:
                raise KeyError(*sorted(missing))
            plan = cls(policy, form, adapters, LoraOptions(**rest), couple_roles)
            _validate_values(plan)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise InputError(f"not a plan: {type(error).__name__}: {str(error)[:500]}") from error
        return plan


def _adapter_from_dict(data: Mapping[str, Any]) -> PlannedAdapter:
    names = {f.name for f in dataclasses.fields(Projection)}
    projection = {key: value for key, value in data.items() if key in names}
    projection |= {
        "role": parse_role(data["role"]),
        "attention": Attention(data["attention"]) if data["attention"] else None,
        "rows": tuple((start, stop) for start, stop in data["rows"]),
        # The first plans had no fused weights, and named the two sides.
        "shape": tuple(data["shape"] if "shape" in data else (data["out_features"], data["in_features"])),
    }
    init = parse_init(data["init"])
    if init is None:
        raise InputError(f"not a plan: {data['module']} has no init")
    return PlannedAdapter(Projection(**projection), init, data["rank"], data["alpha"], data["scaling"])


def _validate_values(plan: Plan) -> None:
    """Refuse values that `make_plan` never produces, since a file may have been edited.

    Raises:
        ValueError: A value is impossible; the message names it.
    """
    options = plan.options
    flags = (options.rslora, options.dora, plan.couple_roles)
    if not plan.adapters or not all(isinstance(flag, bool) for flag in flags) or not 0 <= options.dropout < 1:
        raise ValueError("expected adapters, true or false as flags, and a dropout from 0 to 1")
    if not all(isinstance(name, str) and name and _NOT_IN_NAMES.isdisjoint(name) for name in options.modules_to_save):
        raise ValueError("modules_to_save must be names of modules")
    if options.task_type is not None and options.task_type not in TASKS:
        raise ValueError(f"task_type must be one of {', '.join(TASKS)}")
    seen: set[tuple[str, Role]] = set()
    shapes: dict[str, tuple[int, int]] = {}
    for planned in plan.adapters:
        projection = planned.projection
        key = (projection.module, projection.role)
        texts = (projection.module, projection.dtype, projection.rule, projection.layout)
        if not all(isinstance(text, str) for text in texts) or not projection.module:
            raise ValueError("modules, dtypes, rules and layouts must be names")
        if key in seen or shapes.setdefault(projection.module, projection.shape) != projection.shape:
            raise ValueError(f"{projection.module} occurs twice, or with two shapes")
        seen.add(key)
        _validate_numbers(planned)


def _validate_numbers(planned: PlannedAdapter) -> None:
    projection = planned.projection
    out, in_ = projection.shape
    ends = [end for pair in projection.rows for end in pair]
    whole = all(type(number) is int for number in (out, in_, planned.rank, *ends))
    if not whole or not (0 < out < 2**31 and 0 < in_ < 2**31):
        raise ValueError(f"{projection.module} has the shape {projection.shape}")
    if not ends or ends != sorted(ends) or ends[0] < 0 or ends[-1] > out or projection.out_features == 0:
        raise ValueError(f"{projection.module} has the rows {projection.rows} of {out}")
    if not 1 <= planned.rank <= projection.max_rank:
        raise ValueError(f"{projection.module} has the rank {planned.rank}")
    for name, number in {"alpha": planned.alpha, "scaling": planned.scaling}.items():
        if not 0 < number < 1e300:
            raise ValueError(f"{name} must be a positive number, got {number} ({projection.module})")


def compute_scaling(rank: float, alpha: float, *, rslora: bool = False, where: str = "") -> float:
    """Compute the scaling of a LoRA, alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732).

    Args:
        rank: The rank r, at least 1.
        alpha: The alpha of the user.
        rslora: Whether the scaling is rank-stabilised.
        where: Phrase for error messages, such as " for layers.0.query".

    Returns:
        The scaling.

    Raises:
        InputError: Alpha is no number, or the scaling is outside the range of float16.
    """
    divisor = math.sqrt(rank) if rslora else rank
    lowest, highest = _MIN_SCALING * divisor, _MAX_SCALING * divisor
    # Compared before it is divided: an integer of Python may be too large for a float.
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not lowest <= alpha <= highest:
        raise InputError(
            f"alpha must be a number between {lowest:.3g} and {highest:.6g}{where}, got {_format_alpha(alpha)} (the "
            f"scaling alpha / {'sqrt(rank)' if rslora else 'rank'}, here with rank {rank}, must be between "
            f"{_MIN_SCALING:.2g} and {_MAX_SCALING:g}: float16 rounds or overflows factors beyond)"
        )
    return float(alpha / divisor)


def _format_alpha(alpha: object) -> str:
    # The repr of an integer of more than 4300 digits raises.
    return "an integer beyond float64" if isinstance(alpha, int) and abs(alpha) > 1e300 else repr(alpha)[:80]


def parse_form(form: Form | str) -> Form:
    """Parse the name of a form.

    Raises:
        InputError: The form is unknown.
    """
    return parse_choice("form", form, Form)
