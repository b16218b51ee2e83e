"""Plan of a model's adapters: the settings of every adapted projection, without tensors."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ailora.errors import InputError, parse_choice
from ailora.formatting import is_real
from ailora.inits import Init, Policy, parse_init, parse_policy
from ailora.plan.task_type import TASKS
from ailora.roles import Attention, Projection, Role, parse_role
from ailora.roles.fused_layout import Rows

# PEFT compiles the names of `modules_to_save` as regular expressions, in which these characters are operators.
REGEX_OPERATORS = frozenset(r"*+?{}()[]\^$|")
# Range of normal float16 numbers. Spectral factors are proportional to 1 / sqrt(scaling), and their product to
# 1 / scaling. Outside this range, they underflow or overflow in half-precision training, exports and servers. The range
# also applies to bfloat16 and float32, because an adapter may be saved in one dtype and loaded in another.
_MIN_SCALING, _MAX_SCALING = 2.0**-14, 65504.0


class Form(StrEnum):
    """Representation of the update during training; see `docs/concepts.md`. All forms have one file format."""

    ANCHORED = "anchored"
    STOCK = "stock"
    RESIDUAL = "residual"


@dataclass(frozen=True)
class PlannedAdapter:
    """Adapter settings of one projection.

    Attributes:
        projection: Adapted projection.
        init: Init of the factors.
        rank: Rank `r` of the adapter. `file_rank` is the rank of the saved factors.
        alpha: LoRA's alpha, the numerator of the scaling.
        scaling: Factor `s` in `dW = s (B A - B0 A0)`: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
    """

    projection: Projection
    init: Init
    rank: int
    alpha: float
    scaling: float

    @property
    def file_rank(self) -> int:
        """Rank of the saved adapter: 2r if the init is anchored, else r."""
        return 2 * self.rank if self.init.needs_anchor else self.rank

    @property
    def trainable(self) -> int:
        """Number of trainable parameters in the anchored and in the residual form: r (in + out)."""
        return self.rank * (self.projection.in_features + self.projection.out_features)


@dataclass(frozen=True)
class LoraOptions:
    """Options passed to PEFT's `LoraConfig` unchanged.

    Attributes:
        dropout: Probability of dropping an entry of the adapter's input.
        rslora: Whether the scaling is alpha / sqrt(r) (arXiv 2312.03732).
        dora: Whether the adapter also trains magnitudes, as DoRA does (arXiv 2402.09353).
        modules_to_save: Names of modules to train in full and to save with the adapter.
        task_type: PEFT's task type, from which PEFT chooses the class of the adapted model.
    """

    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    task_type: str | None = None


@dataclass(frozen=True)
class Plan:
    """Adapter settings of a model, without tensors.

    Attributes:
        policy: Policy that chose the inits.
        form: Anchored, stock or residual.
        adapters: An entry for each adapted projection, in the order of the model's modules.
        options: Options of PEFT's `LoraConfig`.
        couple_roles: Whether each adapter of a fused weight trains all rows of the weight, not just those of its role.

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
        """Adapters of each module, by module name. A fused weight has an adapter for each adapted role."""
        by_module: dict[str, list[PlannedAdapter]] = {}
        for adapter in self.adapters:
            by_module.setdefault(adapter.projection.module, []).append(adapter)
        return {module: tuple(adapters) for module, adapters in by_module.items()}

    def trained_rows(self, projection: Projection) -> Rows:
        """Return the rows of the module's weight that the adapter of a projection trains."""
        return ((0, projection.shape[0]),) if self.couple_roles else projection.rows

    @property
    def trainable(self) -> int:
        """Number of trainable parameters in the adapters, without those in `modules_to_save`."""
        return sum(self._count_trainable(a) for a in self.adapters) + self.magnitudes

    @property
    def anchor_entries(self) -> int:
        """Number of entries of the initial factors kept beside the trained factors. The stock form keeps none."""
        if self.form is Form.STOCK:
            return 0
        return sum(self._count_trainable(a) for a in self.adapters if a.init.needs_anchor)

    @property
    def magnitudes(self) -> int:
        """Number of magnitudes that DoRA trains, one for each row of an adapted weight. Zero without DoRA."""
        return sum(group[0].projection.shape[0] for group in self.modules.values()) if self.options.dora else 0

    def _count_trainable(self, adapter: PlannedAdapter) -> int:
        """Return the number of trainable entries of an adapter's factors in the form of this plan."""
        # The stock form trains all 2r rows of `A` and columns of `B`, including the anchor.
        if self.form is Form.STOCK:
            return adapter.file_rank * sum(adapter.projection.shape)
        # With coupled roles, `B` has all rows of a fused weight.
        return adapter.rank * sum(adapter.projection.shape) if self.couple_roles else adapter.trainable

    @property
    def counts(self) -> dict[Role, int]:
        """Number of adapted projections of each role."""
        return dict(Counter(a.projection.role for a in self.adapters))

    def __str__(self) -> str:
        inits = {a.projection.role: ", ".join(a.init.to_dict().values()) for a in self.adapters}
        roles = "; ".join(f"{count} {role} ({inits[role]})" for role, count in self.counts.items())
        return f"{self.policy.name}, {self.form} form: {roles}; {self.trainable:,} trainable parameters"

    @property
    def file_bytes(self) -> int:
        """Size of the adapters' tensors in float32, in bytes, without the modules in `modules_to_save`."""
        shapes = [(a.projection.shape, a.file_rank) for a in self.adapters]
        return 4 * (sum(rank * (out + in_) for (out, in_), rank in shapes) + self.magnitudes)

    def to_dict(self) -> dict[str, object]:
        """Return the plan as plain data for JSON, the input of `from_dict`."""
        adapters = [
            {
                **dataclasses.asdict(a.projection),
                "init": a.init.to_dict(),
                "rank": a.rank,
                "alpha": a.alpha,
                "scaling": a.scaling,
            }
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
        """Parse the result of `to_dict`, possibly read from a file.

        Raises:
            InputError: A key is missing, a key is unknown (except in `adapters`), or a value is invalid.
        """
        try:
            fields = dict(data)
            # Earlier versions wrote this key into every plan; null means that no layer was replicated.
            if fields.pop("layer_replication", None) is not None:
                raise ValueError("layer_replication is not supported")
            _validate_keys(fields)
            policy, form = parse_policy(fields.pop("policy")), parse_form(fields.pop("form"))
            adapters = tuple(_adapter_from_dict(a) for a in fields.pop("adapters"))
            couple_roles = fields.pop("couple_roles", False)
            if not isinstance(saved := fields["modules_to_save"], list):
                raise TypeError(f"modules_to_save must be a list of module names, got {saved!r}")
            fields["modules_to_save"] = tuple(saved)
            plan = cls(policy, form, adapters, LoraOptions(**fields), couple_roles)
            _validate_values(plan)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"not a plan: {reason[:500]}") from error
        return plan


def _validate_keys(fields: Mapping[str, object]) -> None:
    """Validate the keys of a plan read from a file.

    Raises:
        ValueError: A key is missing or unknown.
    """
    required = {"policy", "form", "adapters", *(f.name for f in dataclasses.fields(LoraOptions))}
    if missing := sorted(required - fields.keys()):
        raise ValueError(f"missing: {', '.join(missing)}")
    if unknown := sorted(fields.keys() - required - {"couple_roles"}):
        raise ValueError(f"unknown: {', '.join(unknown)}")


def _adapter_from_dict(data: Mapping[str, Any]) -> PlannedAdapter:
    names = {f.name for f in dataclasses.fields(Projection)}
    projection = {key: value for key, value in data.items() if key in names}
    projection |= {
        "role": parse_role(data["role"]),
        "attention": Attention(data["attention"]) if data["attention"] else None,
        "rows": tuple((start, stop) for start, stop in data["rows"]),
        # Before fused weights were supported, a plan had a key for each side in place of the shape.
        "shape": tuple(data["shape"] if "shape" in data else (data["out_features"], data["in_features"])),
    }
    init = parse_init(data["init"])
    if init is None:
        raise ValueError(f"{data['module']} has no init")
    return PlannedAdapter(Projection(**projection), init, data["rank"], data["alpha"], data["scaling"])


def _validate_values(plan: Plan) -> None:
    """Validate the values of a plan read from a file. Users may have edited the file.

    Raises:
        ValueError: A value is impossible in a plan built by `make_plan`.
    """
    options = plan.options
    flags = (options.rslora, options.dora, plan.couple_roles)
    if not plan.adapters or not all(isinstance(flag, bool) for flag in flags) or not 0 <= options.dropout < 1:
        raise ValueError("adapters must not be empty, flags must be true or false, and dropout must be in [0, 1)")
    names = options.modules_to_save
    if not all(isinstance(name, str) and name and REGEX_OPERATORS.isdisjoint(name) for name in names):
        raise ValueError("modules_to_save must be a list of module names")
    if options.task_type is not None and options.task_type not in TASKS:
        raise ValueError(f"task_type must be one of {', '.join(TASKS)}")
    seen: set[tuple[str, Role]] = set()
    shapes: dict[str, tuple[int, int]] = {}
    for planned in plan.adapters:
        projection = planned.projection
        key = (projection.module, projection.role)
        strings = (projection.module, projection.dtype, projection.rule, projection.layout)
        if not all(isinstance(string, str) for string in strings) or not projection.module:
            raise ValueError("module, dtype, rule and layout of an adapter must be strings")
        if key in seen or shapes.setdefault(projection.module, projection.shape) != projection.shape:
            raise ValueError(f"{projection.module} occurs twice with the same role, or with different shapes")
        seen.add(key)
        _validate_numbers(planned)


def _validate_numbers(planned: PlannedAdapter) -> None:
    projection = planned.projection
    out, in_ = projection.shape
    bounds = [bound for row_range in projection.rows for bound in row_range]
    where = f"({projection.module})"
    integers = (out, in_, planned.rank, *bounds)
    # Not `isinstance`, for which true and false are integers. Sides of real weights are far below 2^31.
    if not all(type(number) is int for number in integers) or not (0 < out < 2**31 and 0 < in_ < 2**31):
        raise ValueError(f"shape, rank and rows must be integers, and the shape positive, got {integers} {where}")
    if not bounds or bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > out or projection.out_features == 0:
        raise ValueError(f"rows must be ascending ranges within {out} rows, got {projection.rows} {where}")
    if not 1 <= planned.rank <= projection.max_rank:
        raise ValueError(f"rank must be between 1 and {projection.max_rank}, got {planned.rank} {where}")
    for name, number in {"alpha": planned.alpha, "scaling": planned.scaling}.items():
        if not 0 < number < 1e300:  # also refuses NaN, infinity and integers beyond float64
            raise ValueError(f"{name} must be a positive number, got {number} {where}")


def compute_scaling(rank: float, alpha: float, *, rslora: bool = False, where: str = "") -> float:
    """Compute LoRA's scaling s: alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732).

    Args:
        rank: Rank r, at least 1.
        alpha: Alpha as given by the user.
        rslora: Whether the scaling is rank-stabilised.
        where: Phrase for error messages, such as " for layers.0.query".

    Returns:
        The scaling s.

    Raises:
        InputError: `alpha` is not a number, or the scaling is outside the range of normal float16 numbers.
    """
    divisor = math.sqrt(rank) if rslora else rank
    lowest, highest = _MIN_SCALING * divisor, _MAX_SCALING * divisor
    # Compare before dividing: for a Python integer beyond float64, the division would raise OverflowError.
    if not is_real(alpha) or not lowest <= alpha <= highest:
        raise InputError(
            f"alpha must be a number between {lowest:.3g} and {highest:.6g}{where}, got {_format_alpha(alpha)} (the "
            f"scaling alpha / {'sqrt(rank)' if rslora else 'rank'}, here with rank {rank}, must be between "
            f"{_MIN_SCALING:.2g} and {_MAX_SCALING:g}; outside this range, factors underflow or overflow in float16)"
        )
    return float(alpha / divisor)


def _format_alpha(alpha: object) -> str:
    # `repr` raises for an integer of more than 4300 digits.
    return "an integer beyond float64" if isinstance(alpha, int) and abs(alpha) > 1e300 else repr(alpha)[:80]


def parse_form(form: Form | str) -> Form:
    """Parse the name of a form.

    Raises:
        InputError: The form is unknown.
    """
    return parse_choice("form", form, Form)
