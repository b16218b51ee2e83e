"""Design of a search: its choices, the configuration of each, and the candidates within the budget."""

from __future__ import annotations

import copy
import itertools
import math
from functools import cached_property
from pathlib import Path
from typing import Any

from ailora.errors import AiloraError, InputError
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.method import parse_method
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.config.tune_section import ALL_ROLES, TuneRates
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.roles import Role, find_projections
from ailora.studies.methods import StudyMethod
from ailora.studies.parameter_budget import count_trainable, match_trainable_parameters, meta_model
from ailora.studies.trial import ONLY_TASK, Condition, TrialResult, TrialSpec
from ailora.studies.trial_keys import TrialKeys, trial_identity
from ailora.tune.candidates import Candidate, RateSpan, RateValues, spread_candidates
from ailora.tune.rung_plan import RungPlan, rung_steps
from ailora.tune.tune_request import TuneRequest

#: Most candidates of a search: more would not be judged better, and each is planned.
_MAX_CANDIDATES = 1_000
#: A rank, or one for each role or module.
Rank = int | dict[str, int]
#: Keys of a condition's setting.
ROLES, RANK = "adapter.roles", "adapter.rank"


class TuneChoices:
    """Choices of policy, roles and rank, and the configuration of each.

    Args:
        base: complete configuration of the run, with the section `tune`.

    Attributes:
        run: configuration of the run.
        configs: choice -> configuration of its runs, without learning rate.
        goal: score on the validation split that decides.

    Raises:
        InputError: A choice cannot be trained.
        ModelError: The model cannot be adapted by a choice.
    """

    def __init__(self, base: dict[str, Any]) -> None:
        self._base = base
        self.run: RunConfig = load_config(base)
        tune = self.run.tune
        self.goal = tune.goal
        ranks = tune.rank or [self.run.adapter.rank]
        choices = itertools.product(ranks, tune.roles, tune.policy)
        self.configs = dict(self._configure(rank, roles, policy) for rank, roles, policy in choices)

    @property
    def conditions(self) -> list[Condition]:
        """Choices, policies first, then roles, then ranks."""
        return list(self.configs)

    @cached_property
    def trainable(self) -> dict[Condition, int]:
        """Number of trainable parameters of each choice's adapter."""
        return {condition: count_trainable(config) for condition, config in self.configs.items()}

    def rates(self, centers: list[float]) -> dict[Condition, RateSpan | RateValues]:
        """Return the learning rates of each choice.

        Args:
            centers: center of each choice's span, in the order of `conditions`.
        """
        given = self.run.tune.learning_rate
        if isinstance(given, TuneRates):
            return dict.fromkeys(self.conditions, _parse_rates(given))
        return {condition: RateSpan(center) for condition, center in zip(self.conditions, centers, strict=True)}

    def _configure(self, rank: Rank, roles: str | list[str], policy: str) -> tuple[Condition, RunConfig]:
        condition = Condition.from_values(ONLY_TASK, policy, {ROLES: roles, RANK: rank})
        try:
            config = self._load(policy, rank, self._expand(roles))
            first = self._expand(self.run.tune.roles[0])
            return condition, match_trainable_parameters(config, self._load(policy, rank, first))
        except AiloraError as error:
            raise InputError(f"tune: {policy}, {describe_roles(roles)}, rank {rank}: {error}") from None

    def _load(self, policy: str, rank: Rank, roles: list[str]) -> RunConfig:
        raw = copy.deepcopy({key: value for key, value in self._base.items() if key != "tune"})
        StudyMethod(parse_method(policy), {ROLES: roles, RANK: rank}).apply(raw)
        return load_config(raw)

    def _expand(self, roles: str | list[str]) -> list[str]:
        """Return the roles of an entry; those of `all` are the roles of the model, in the order of `Role`."""
        if isinstance(roles, list):
            return roles
        model = meta_model(self.run.model, self.run.task_type)
        present = {p.role for p in find_projections(model, role_names=self.run.adapter.role_names)}
        return [role.value for role in Role if role in present]


class TuneDesign:
    """Design of a search.

    Args:
        request: request of the search.

    Attributes:
        request: request of the search.
        choices: choices of the search.
        keys: keys of the trials.
        plan: rungs of the search; None until a budget in time has been converted.

    Raises:
        InputError: A choice cannot be trained, or the budget is below one run.
        ModelError: The model cannot be adapted by a choice.
    """

    def __init__(self, request: TuneRequest) -> None:
        self.request = request
        self.choices = TuneChoices(request.base)
        self.keys = TrialKeys({c: trial_identity(config) for c, config in self.choices.configs.items()})
        self._rates = self.choices.rates(request.centers)
        self.plan: RungPlan | None = None
        if request.budget_runs is not None:
            self.plan = RungPlan.within(
                request.evaluation_steps,
                request.budget_runs,
                max_candidates=len(spread_candidates(self._rates, _MAX_CANDIDATES)),
                overhead_runs=request.overhead_runs,
            )

    @property
    def total_steps(self) -> int:
        """Steps of a whole run."""
        return self.request.evaluation_steps[-1]

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """Last step and number of candidates of each rung; before the plan, a single candidate on the first rung."""
        if self.plan is None:
            return [(rung_steps(self.request.evaluation_steps)[0], 1)]
        return list(zip(self.plan.steps, self.plan.counts, strict=True))

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Candidates of the first rung."""
        return spread_candidates(self._rates, self.rungs[0][1])

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger value of the goal is better."""
        return self.choices.goal != "loss"

    def spec(self, candidate: Candidate, step: int | None) -> TrialSpec:
        """Return the trial of a candidate until a step; None for the whole run."""
        seed = self.choices.run.training["seed"]
        return TrialSpec(candidate.condition, candidate.learning_rate, seed, until_step=step)

    def prefix(self, spec: TrialSpec) -> RunPrefix:
        """Return the steps that a trial trains to."""
        assert spec.until_step is not None
        return RunPrefix(spec.until_step, self.total_steps)

    def run_config(self, spec: TrialSpec) -> RunConfig:
        """Return the configuration of a trial, whose folder is that of its candidate on all rungs."""
        whole = TrialSpec(spec.condition, spec.learning_rate, spec.seed)
        return self._with_output(spec, Path(self.request.output) / "trials" / self.keys.key(whole))

    def final_config(self, candidate: Candidate) -> RunConfig:
        """Return the configuration of a candidate's run in the output folder."""
        return self._with_output(self.spec(candidate, None), self.request.run_output)

    def value(self, result: TrialResult) -> float:
        """Return the value of the goal at the end of a trial."""
        return result.metrics["validation"][self.choices.goal]

    def score(self, result: TrialResult) -> float:
        """Return the value of the goal at the end of a trial, with the sign by which larger is better."""
        return self.value(result) if self.larger_is_better else -self.value(result)

    def _with_output(self, spec: TrialSpec, output: Path) -> RunConfig:
        config = self.choices.configs[spec.condition]
        training = {**config.training, **spec.training_arguments}
        return config.model_copy(update={"training": training, "output": str(output)})


def _parse_rates(rates: TuneRates) -> RateSpan | RateValues:
    if rates.values is not None:
        return RateValues(tuple(sorted(rates.values)))
    assert rates.from_ is not None
    assert rates.to is not None
    return RateSpan(math.sqrt(rates.from_ * rates.to), math.log10(rates.to / rates.from_) / 2)


def describe_roles(roles: str | list[str]) -> str:
    """Format roles for a reader."""
    return "all linear layers" if roles == ALL_ROLES else " and ".join(roles)
