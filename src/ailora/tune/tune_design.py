"""Design of a search: its candidates within the budget, its rungs, and the configuration of each trial."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.trial import Condition, TrialResult, TrialSpec
from ailora.studies.trial_keys import TrialKeys, trial_identity
from ailora.tune.candidates import Candidate, RateSpan, RateValues, spread_candidates
from ailora.tune.rung_plan import RungPlan, ranking_metric, rung_steps
from ailora.tune.search_space import SearchSpace
from ailora.tune.tune_request import TuneRequest

#: Upper limit for the number of candidates, because all are listed before the search begins.
_MAX_CANDIDATES = 1_000


class TuneDesign:
    """Design of a search.

    Args:
        request: Request of the search.

    Attributes:
        request: Request of the search.
        space: Search space.
        keys: Keys of the trials.
        plan: Rungs of the search; None until a budget in time is converted into runs.

    Raises:
        InputError: A condition cannot be trained, or the budget is below one run.
        ModelError: The model cannot be adapted under a condition.
    """

    def __init__(self, request: TuneRequest) -> None:
        self.request = request
        self.space = SearchSpace(request.base)
        self.keys = TrialKeys({c: trial_identity(config) for c, config in self.space.configs.items()})
        self._rates = self._drop_equal_conditions(self.space.rates(request.centers))
        self.plan: RungPlan | None = None
        if request.budget_runs is not None:
            self.plan = RungPlan.within(
                request.evaluation_steps,
                request.budget_runs,
                max_candidates=len(spread_candidates(self._rates, _MAX_CANDIDATES)),
                overhead_runs=request.overhead_runs,
            )

    def _drop_equal_conditions(
        self, rates: dict[Condition, RateSpan | RateValues]
    ) -> dict[Condition, RateSpan | RateValues]:
        """Of conditions whose runs would be equal, keep only the first.

        Ranks are scaled so that all sets of roles train as many parameters as the first set. For a set with more
        modules, different ranks may round to the same small rank.
        """
        condition_by_key: dict[str, Condition] = {}
        for condition in rates:
            # Any learning rate and seed will do, because only conditions are compared.
            key = self.keys.key(TrialSpec(condition, learning_rate=1.0, seed=0))
            condition_by_key.setdefault(key, condition)
        return {condition: rates[condition] for condition in condition_by_key.values()}

    @property
    def total_steps(self) -> int:
        """Steps of a whole run."""
        return self.request.evaluation_steps[-1]

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """Last step and number of candidates of each rung; without a plan, a single candidate on the first rung."""
        if self.plan is None:
            return [(rung_steps(self.request.evaluation_steps)[0], 1)]
        return list(zip(self.plan.steps, self.plan.counts, strict=True))

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Candidates of the first rung."""
        return spread_candidates(self._rates, self.rungs[0][1])

    def ranking_metric(self, step: int) -> str:
        """Return the metric that ranks candidates after a step."""
        return ranking_metric(self.space.goal, step, self.total_steps)

    def spec(self, candidate: Candidate, step: int | None) -> TrialSpec:
        """Return the specification of a candidate's trial up to a step, or of its whole run if `step` is None."""
        seed = self.space.run.training["seed"]
        return TrialSpec(candidate.condition, candidate.learning_rate, seed, until_step=step)

    def prefix(self, spec: TrialSpec) -> RunPrefix:
        """Return the prefix of the run that a trial trains."""
        assert spec.until_step is not None
        return RunPrefix(spec.until_step, self.total_steps)

    def run_config(self, spec: TrialSpec) -> RunConfig:
        """Return the configuration of a trial. All trials of a candidate share a folder."""
        # In a shared folder, the trial of a later rung resumes from the checkpoint of the earlier rung.
        whole_run = TrialSpec(spec.condition, spec.learning_rate, spec.seed)
        return self._with_output(spec, Path(self.request.output) / "trials" / self.keys.key(whole_run))

    def final_config(self, candidate: Candidate) -> RunConfig:
        """Return the configuration of a candidate's whole run in the output folder."""
        return self._with_output(self.spec(candidate, None), self.request.run_output)

    def value(self, result: TrialResult, step: int) -> float:
        """Return the value of the metric that ranks candidates after a step."""
        return result.metrics["validation"][self.ranking_metric(step)]

    def score(self, result: TrialResult, step: int) -> float:
        """Return the score of a result at a step: its value, negated for the loss, so that larger is better."""
        value = self.value(result, step)
        return -value if self.ranking_metric(step) == "loss" else value

    def _with_output(self, spec: TrialSpec, output: Path) -> RunConfig:
        config = self.space.configs[spec.condition]
        training = {**config.training, **spec.training_arguments}
        return config.model_copy(update={"training": training, "output": str(output)})
