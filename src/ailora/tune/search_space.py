"""Search space of `ailora tune`: conditions (policy, roles and rank), each with a configuration and learning rates."""

from __future__ import annotations

import copy
import itertools
import math
from functools import cached_property
from typing import Any

from ailora.errors import AiloraError, InputError
from ailora.formatting import format_lr
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.method import parse_method
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.config.tune_section import ALL_ROLES, TuneRates
from ailora.roles import Role, find_projections
from ailora.studies.methods import StudyMethod
from ailora.studies.parameter_budget import count_trainable, match_trainable_parameters, meta_model
from ailora.studies.trial import ONLY_TASK, Condition
from ailora.tune.candidates import RateSpan, RateValues

#: A rank, or one for each role or module.
Rank = int | dict[str, int]
#: Keys of a condition's setting.
ROLES, RANK = "adapter.roles", "adapter.rank"


class SearchSpace:
    """Conditions of a search, and the configuration of each.

    Args:
        base: Complete configuration of the run, with the section `tune`.

    Attributes:
        run: Configuration of the run.
        configs: Condition -> configuration of its runs, without the learning rate.
        goal: Name of the score on the validation split by which candidates are compared.

    Raises:
        InputError: A condition cannot be trained.
        ModelError: The model cannot be adapted under a condition.
    """

    def __init__(self, base: dict[str, Any]) -> None:
        self._base = base
        self.run: RunConfig = load_config(base)
        tune = self.run.tune
        self.goal = tune.goal
        ranks = tune.rank or [self.run.adapter.rank]
        # Storages depend on this order: `TuneRequest.centers` follows it.
        combinations = itertools.product(ranks, tune.roles, tune.policy)
        self.configs = dict(self._configure(rank, roles, policy) for rank, roles, policy in combinations)

    @property
    def conditions(self) -> list[Condition]:
        """All conditions. Policies change fastest, ranks slowest."""
        return list(self.configs)

    @cached_property
    def trainable(self) -> dict[Condition, int]:
        """Number of trainable parameters of the adapter under each condition."""
        return {condition: count_trainable(config) for condition, config in self.configs.items()}

    def describe(self, condition: Condition, learning_rate: float) -> str:
        """Format the settings of a candidate for a reader: policy, rate and roles; also the rank if several compete."""
        label = f"{condition.method} at {format_lr(learning_rate)} on {describe_roles(condition.values[ROLES])}"
        return f"{label} with rank {self._rank(condition)}" if self._has_several_ranks else label

    def describe_with_rank(self, condition: Condition, learning_rate: float) -> str:
        """Format the settings of a candidate for a reader, always with its rank."""
        label = self.describe(condition, learning_rate)
        return label if self._has_several_ranks else f"{label} (rank {self._rank(condition)})"

    @property
    def _has_several_ranks(self) -> bool:
        return len(self.run.tune.rank or ()) > 1

    def _rank(self, condition: Condition) -> Rank:
        return self.configs[condition].adapter.rank

    def rates(self, centers: list[float]) -> dict[Condition, RateSpan | RateValues]:
        """Return the learning rates to choose from under each condition.

        Args:
            centers: Center of the automatic range of each condition, in the order of `conditions`; ignored if
                `tune.learning_rate` gives rates.
        """
        rates = self.run.tune.learning_rate
        if isinstance(rates, TuneRates):
            return dict.fromkeys(self.conditions, _parse_rates(rates))
        return {condition: RateSpan(center) for condition, center in zip(self.conditions, centers, strict=True)}

    def _configure(self, rank: Rank, roles: str | list[str], policy: str) -> tuple[Condition, RunConfig]:
        condition = Condition.from_values(ONLY_TASK, policy, {ROLES: roles, RANK: rank})
        try:
            config = self._load(policy, rank, self._expand(roles))
            # Scale the rank, so that each set of roles trains about as many parameters as the first set.
            first_roles = self._expand(self.run.tune.roles[0])
            return condition, match_trainable_parameters(config, self._load(policy, rank, first_roles))
        except AiloraError as error:
            raise InputError(f"tune: {policy}, {describe_roles(roles)}, rank {rank}: {error}") from None

    def _load(self, policy: str, rank: Rank, roles: list[str]) -> RunConfig:
        # `apply` changes nested sections in place.
        raw = copy.deepcopy({key: value for key, value in self._base.items() if key != "tune"})
        StudyMethod(parse_method(policy), {ROLES: roles, RANK: rank}).apply(raw)
        return load_config(raw)

    def _expand(self, roles: str | list[str]) -> list[str]:
        """Return the roles of an entry of `tune.roles`; `all` stands for the model's roles, in the order of `Role`."""
        if isinstance(roles, list):
            return roles
        model = meta_model(self.run.model, self.run.task_type)
        present = {p.role for p in find_projections(model, role_names=self.run.adapter.role_names)}
        return [role.value for role in Role if role in present]


def _parse_rates(rates: TuneRates) -> RateSpan | RateValues:
    if rates.values is not None:
        return RateValues(tuple(sorted(rates.values)))
    assert rates.from_ is not None
    assert rates.to is not None
    center = math.sqrt(rates.from_ * rates.to)
    return RateSpan(center, decades=math.log10(rates.to / rates.from_) / 2)


def describe_roles(roles: str | list[str]) -> str:
    """Format roles for a reader."""
    return "all linear layers" if roles == ALL_ROLES else " and ".join(roles)
