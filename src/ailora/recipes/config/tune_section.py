"""Section `tune:`: budget, choices and goal of `ailora tune`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic

from ailora.errors import InputError, unknown_name
from ailora.recipes.config.method import CustomFunction, FullFineTuning, parse_method
from ailora.recipes.config.validation import Count, Section, Text, field
from ailora.roles import parse_role

#: Entry of `roles:` for all roles of the model.
ALL_ROLES = "all"
_BUDGET = re.compile(r"(\d+(?:\.\d+)?) ?(x|s|m|h)")
_SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
_Rate = Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)]


class TuneRates(Section, frozen=True, populate_by_name=True):
    """Value of `learning_rate:` as a mapping: a range, or exact rates.

    Attributes:
        from_, to: Ends of the range.
        values: Exact rates.
    """

    from_: _Rate | None = field("a number above 0", None, alias="from")
    to: _Rate | None = field("a number above 0", None)
    values: list[_Rate] | None = field("a list of numbers above 0", None, min_length=1)

    def check(self) -> None:
        """Validate the combination of keys.

        Raises:
            InputError: Values and a range are both given or both missing, an end of the range is missing, the range is
                reversed, or a value is a duplicate.
        """
        if (self.values is None) == (self.from_ is None and self.to is None):
            raise InputError("tune.learning_rate: expected either from and to, or values")
        if self.values is not None:
            if len(set(self.values)) < len(self.values):
                raise InputError("tune.learning_rate.values names a rate twice")
        elif self.from_ is None or self.to is None:
            raise InputError("tune.learning_rate: expected both from and to")
        elif self.from_ > self.to:
            raise InputError(f"tune.learning_rate: from {self.from_:g} is more than to {self.to:g}")


class TuneConfig(Section, frozen=True):
    """Section `tune:`, read by `ailora tune` and ignored by other commands.

    Attributes:
        budget: Cost of the search, in complete runs (`5x`) or time (`90s`, `30m`, `2h`).
        policy: Values of `adapter.policy` to choose from.
        roles: Values of `adapter.roles` to choose from; `all` stands for all roles of the model. Ranks of later entries
            are scaled so that all entries train as many parameters as the first.
        learning_rate: Rates to try; `auto` for a range around the rate of plain LoRA, shifted by `suggest-lr`.
        rank: Values of `adapter.rank` to choose from, for the first entry of `roles`; None for the rank of the run.
        goal: Loss or metric on the validation split by which candidates are compared at the end of a run.
        storage: Optuna database URL; None for SQLite in the output folder.
    """

    budget: Text = field("a number of runs such as '5x', or a time such as '30m' or '2h'", "5x")
    policy: list[Text] = field("a list of policies", ["lora", "ailora", "pissa", "milora"], min_length=1)
    roles: list[Literal["all"] | list[Text]] = field(
        "a list whose items are lists of roles, or 'all'", [["query", "value"], ALL_ROLES], min_length=1
    )
    learning_rate: Literal["auto"] | TuneRates = field(
        "'auto', or a mapping with either from and to, or values", "auto"
    )
    rank: list[Count] | None = field("a list of whole numbers of at least 1", None, min_length=1)
    goal: Text = field("'loss', or a metric of evaluations during training", "loss")
    storage: Text | None = field("an Optuna database URL such as sqlite:///tune.db", None)

    @property
    def budget_runs(self) -> float | None:
        """Budget in complete runs; None for a budget in time."""
        number, unit = _parse_budget(self.budget)
        return number if unit == "x" else None

    @property
    def budget_seconds(self) -> float | None:
        """Budget in seconds; None for a budget in runs."""
        number, unit = _parse_budget(self.budget)
        return None if unit == "x" else number * _SECONDS_PER_UNIT[unit]

    def check(self, metrics: Sequence[str]) -> None:
        """Validate names, and values beyond the types of the fields.

        Args:
            metrics: Metrics of the run's evaluations during training.

        Raises:
            InputError: The budget is below one run, a name is unknown or a duplicate, or `learning_rate` is invalid.
        """
        number, unit = _parse_budget(self.budget)
        if unit == "x" and number < 1:
            raise InputError(f"tune.budget must be at least 1x, the cost of one run, got {self.budget}")
        if unit != "x" and number <= 0:
            raise InputError(f"tune.budget must be more than 0, got {self.budget}")
        for policy in self.policy:
            _validate_policy(policy)
        for roles in self.roles:
            for role in roles if roles != ALL_ROLES else []:
                parse_role(role)
        for key, values in {"policy": self.policy, "roles": self.roles, "rank": self.rank or []}.items():
            counts = Counter(map(str, values))
            if repeated := [name for name, count in counts.items() if count > 1]:
                raise InputError(f"tune.{key} names {repeated[0]} twice")
        if isinstance(self.learning_rate, TuneRates):
            self.learning_rate.check()
        if self.goal not in ("loss", *metrics):
            raise unknown_name("tune.goal", self.goal, [*metrics, "loss"])


def _parse_budget(budget: str) -> tuple[float, str]:
    """Parse a budget into a number and its unit: x, s, m or h."""
    match = _BUDGET.fullmatch(budget.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise InputError(
            f"tune.budget: expected a number of runs such as '5x', or a time such as '30m', got {budget!r}"
        )
    return float(match[1]), match[2]


def _validate_policy(policy: str) -> None:
    try:
        method = parse_method(policy)
    except InputError as error:
        raise InputError(f"tune.policy: {error}") from None
    if isinstance(method, FullFineTuning | CustomFunction):
        raise InputError(
            f"tune.policy: expected policies of adapters, got {policy}, whose number of trainable parameters does not "
            "depend on a rank"
        )
