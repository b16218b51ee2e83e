"""Design of a study: its conditions, their trials, and the configuration of each trial."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from ailora.errors import AiloraError, InputError, unknown_name
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.evaluation.classification_metrics import METRICS
from ailora.studies.look_plan import LookState, PlannedComparison, plan_looks
from ailora.studies.lr_search import LrGrid, LrSearch
from ailora.studies.methods import parse_methods
from ailora.studies.parameter_budget import match_trainable_parameters
from ailora.studies.sequential_tests import LookSchedule
from ailora.studies.study_conditions import (
    find_baseline,
    list_conditions,
    load_condition_config,
    task_overrides,
    validate_grid_keys,
)
from ailora.studies.study_config import SequentialSeeds, StudyConfig
from ailora.studies.trial import Condition, Status, Trial, TrialResult, TrialSpec
from ailora.studies.trial_keys import TrialKeys, trial_identity

#: Default of `margin` for scores up to 1.
_DEFAULT_MARGIN = 0.01

#: Maximum number of trials, so that `ailora study status` answers within seconds.
_MAX_TRIALS = 20_000


class StudyDesign:
    """Conditions of a study, with the configuration, metric and learning rates of each.

    Args:
        config: Study file.
        to_run: Whether trials are to run; otherwise user-defined methods are not imported.
        folder: Absolute folder to which relative paths in the section `base:` refer; None for the working folder.

    Attributes:
        methods: Methods by label.
        baseline: Label of the method to compare with.
        conditions: All conditions; for each task and setting, the baseline comes first.
        keys: Hashes that identify the trials in the storage.

    Raises:
        InputError: A method, configuration key, metric or baseline is unknown, the recipe refuses a value, sequential
            seeds lack a margin, or the study has too many trials.
    """

    def __init__(self, config: StudyConfig, *, to_run: bool = True, folder: Path | None = None) -> None:
        self.config = config
        self.methods = parse_methods(config.methods)
        self.baseline = config.baseline or next(iter(self.methods))
        if self.baseline not in self.methods:
            raise unknown_name("baseline", self.baseline, self.methods)
        validate_grid_keys(config)
        self._validate_size()
        self.conditions = list_conditions(config, self.methods, baseline=self.baseline)
        # Validate every configuration before the first trial runs.
        self._configs = {
            condition: load_condition_config(
                condition, config, self.methods[condition.method], to_run=to_run, folder=folder
            )
            for condition in self.conditions
        }
        if config.match_parameters:
            self._configs = {condition: self._match_budget(condition) for condition in self.conditions}
        for condition in self.conditions:
            self._validate_metric_and_margin(condition)
        identities = {condition: trial_identity(run_config) for condition, run_config in self._configs.items()}
        self.keys = TrialKeys(identities, seeds=self.seeds)

    def base_config(self, condition: Condition) -> RunConfig:
        """Return the configuration of a condition's runs; each trial replaces learning rate, seed and output."""
        return self._configs[condition]

    def baseline_for(self, condition: Condition) -> Condition:
        """Find the baseline's condition to compare a condition with; see `find_baseline`."""
        return find_baseline(condition, self.conditions, baseline=self.baseline)

    def metric(self, condition: Condition) -> str:
        """Return the metric that chooses the learning rate and is reported.

        Raises:
            InputError: The recipe does not compute the metric of the study.
        """
        # `RunConfig.scores` maps the name of each metric to whether a larger value is better.
        metrics = self.base_config(condition).scores
        name = self.config.metric or next(iter(metrics))
        if name not in metrics:
            raise unknown_name(f"metric of task {condition.task!r}", name, metrics)
        return name

    def larger_is_better(self, condition: Condition) -> bool:
        """Return whether a larger value of the condition's metric is better."""
        return self.base_config(condition).scores[self.metric(condition)]

    def report_split(self, condition: Condition) -> str:
        """Return the split whose scores are reported: `test`, or `validation` if the task has no test split."""
        return "test" if self.base_config(condition).data.test else "validation"

    def metric_label(self, condition: Condition) -> str:
        """Format the reported metric and split, such as `accuracy (test)`."""
        return f"{self.metric(condition)} ({self.report_split(condition)})"

    def margin(self, condition: Condition) -> float | None:
        """Return the largest difference between equivalent methods.

        It is a share of the baseline's mean if the study file has a percentage, and in the metric's unit otherwise.
        Returns None if neither the study nor the metric has a margin; equivalence is then not tested.
        """
        margin = self.config.margin
        if isinstance(margin, str):
            return float(margin.rstrip(" %")) / 100
        # `METRICS` are those of classification, whose scores are at most 1.
        return _DEFAULT_MARGIN if margin is None and self.metric(condition) in METRICS else margin

    @property
    def selection_seeds(self) -> list[int]:
        """Seeds that choose the best rates.

        The first seed runs at every tried rate, the others at the best rate and its neighbours (`seeds_at: all`: at
        every rate).
        """
        seeds = self.config.seeds
        # `from` is the number of seeds at the first look.
        return list(range(seeds.from_)) if isinstance(seeds, SequentialSeeds) else seeds

    @property
    def seeds(self) -> list[int]:
        """All seeds of a condition, in the order of their runs."""
        return self.config.all_seeds

    @functools.cached_property
    def looks(self) -> LookSchedule:
        """Numbers of seeds at which the methods are judged."""
        seeds = self.config.seeds
        if isinstance(seeds, SequentialSeeds):
            return LookSchedule.between(seeds.from_, seeds.to)
        return LookSchedule((len(self.seeds),))

    def lr_search(self, condition: Condition, n_seeds: int | None = None) -> LrSearch:
        """Build the search for the learning rate of a condition.

        Args:
            condition: Condition of the study.
            n_seeds: Number of seeds at the best rate; None for the number at the first look.
        """
        selection = self.selection_seeds
        extra_seeds = self.seeds[len(selection) : n_seeds or self.looks.counts[0]]
        everywhere = self.config.seeds_at == "all"
        return LrSearch(self._rates(condition.method), selection, extra_seeds, everywhere=everywhere)

    def run_config(self, spec: TrialSpec) -> RunConfig:
        """Return the configuration of a trial, with an output folder of its own."""
        return self._configure(spec, str(self.config.trials_folder / self.keys.key(spec)))

    def score(self, spec: TrialSpec, result: TrialResult) -> float:
        """Return the metric of a completed trial on the validation split, negated if a smaller value is better."""
        value = result.metrics["validation"][self.metric(spec.condition)]
        return value if self.larger_is_better(spec.condition) else -value

    def scores(self, trials: Iterable[Trial]) -> dict[Condition, dict[tuple[float, int], float]]:
        """Collect the scores for the search of the best rates.

        Runs with `max_steps` are left out. They are shorter, and confirm that a method reaches the baseline's loss
        earlier.

        Args:
            trials: From `TrialKeys.matching_trials`.

        Returns:
            Condition -> (learning rate, seed) -> score of the ended trial, larger is better; NaN if it failed.
        """
        scores: dict[Condition, dict[tuple[float, int], float]] = {condition: {} for condition in self.conditions}
        for trial in trials:
            spec = trial.spec
            if trial.ended and spec.max_steps is None:
                result = trial.result if trial.status is Status.COMPLETE else None
                score = self.score(spec, result) if result else math.nan
                scores[spec.condition][spec.learning_rate, spec.seed] = score
        return scores

    def plan_looks(self, trials: Sequence[Trial]) -> LookState[Condition]:
        """Judge the methods at their latest looks, and plan the seeds of their next looks.

        Args:
            trials: From `TrialKeys.matching_trials`.
        """
        reported = self._reported_scores(trials)
        comparisons = {
            condition: PlannedComparison(
                baseline=self.baseline_for(condition),
                margin=self.margin(condition),
                margin_is_share=isinstance(self.config.margin, str),
                larger_is_better=self.larger_is_better(condition),
            )
            for condition in self.conditions
            if condition.method != self.baseline
        }
        return plan_looks(comparisons, reported, self.seeds, self.looks)

    def required_trials(self, trials: Sequence[Trial]) -> list[TrialSpec]:
        """List the trials required by the results so far, including ended trials.

        Args:
            trials: From `TrialKeys.matching_trials`.
        """
        n_seeds = self.plan_looks(trials).n_seeds
        return [
            TrialSpec(condition, rate, seed)
            for condition, scores in self.scores(trials).items()
            for rate, seed in self.lr_search(condition, n_seeds[condition]).plan(scores).required
        ]

    def _reported_scores(self, trials: Sequence[Trial]) -> dict[Condition, dict[int, float] | None]:
        """Collect the scores at the best rates for `ailora.studies.look_plan.plan_looks`.

        Returns:
            Condition -> seed -> score on the reported split, in the metric's unit; NaN without a score. While the
            search for the best rate of a condition goes on, its value is None.
        """
        reported: dict[Condition, dict[int, float] | None] = dict.fromkeys(self.conditions)
        best = {}
        for condition, scores in self.scores(trials).items():
            # With as many seeds as choose the rate, the search ends as soon as the best rate is known.
            search = self.lr_search(condition, len(self.selection_seeds)).plan(scores)
            if search.ended:
                best[condition], reported[condition] = search.best, {}
        for trial in trials:
            spec = trial.spec
            if (seed_scores := reported[spec.condition]) is None or spec.max_steps is not None or not trial.ended:
                continue
            if spec.learning_rate == best[spec.condition]:
                metric, split = self.metric(spec.condition), self.report_split(spec.condition)
                # A result written by a different version of ailora may lack the score, and then counts as failed.
                metrics = trial.result.metrics if trial.result else {}
                seed_scores[spec.seed] = metrics.get(split, {}).get(metric, math.nan)
        return reported

    def _configure(self, spec: TrialSpec, output: str) -> RunConfig:
        base = self.base_config(spec.condition)
        training = {**base.training, **spec.training_arguments}
        return base.model_copy(update={"training": training, "output": output})

    def _match_budget(self, condition: Condition) -> RunConfig:
        try:
            return match_trainable_parameters(self._configs[condition], self._configs[self.baseline_for(condition)])
        except AiloraError as error:
            raise InputError(f"method {condition.method!r}, task {condition.task!r}: {error}") from None

    def _validate_metric_and_margin(self, condition: Condition) -> None:
        """Validate the metric of a condition, and the margin needed by sequential seeds."""
        # Raises an error if the metric is unknown.
        metric = self.metric(condition)
        if isinstance(self.config.seeds, SequentialSeeds) and self.margin(condition) is None:
            raise InputError(
                f"margin is missing, and seeds that run until decided need it: the largest difference of {metric} that "
                "does not matter. Expected a number above 0 in the metric's unit, or a share of the baseline such as 1%"
            )

    def _validate_size(self) -> None:
        """Refuse a study with too many trials, before conditions are built."""
        config = self.config
        n_tasks = len(task_overrides(config))
        n_settings = math.prod(map(len, config.grid.values()))
        n_selection_seeds = len(self.selection_seeds)
        n_trials_by_method = [
            # The larger of two lower limits: all rates with the first seed (with all selection seeds if `seeds_at` is
            # `all`); and the best rate and its two neighbours with all selection seeds.
            max(n_rates * (n_selection_seeds if config.seeds_at == "all" else 1), min(n_rates, 3) * n_selection_seeds)
            for n_rates in (len(self._rates(label).initial) for label in self.methods)
        ]
        n_extra_seeds = len(self.seeds) - n_selection_seeds
        n_trials = n_tasks * n_settings * sum(n + n_extra_seeds for n in n_trials_by_method)
        if n_trials > _MAX_TRIALS:
            raise InputError(
                f"the study has about {n_trials:,} trials: {n_tasks:,} tasks x "
                f"{n_settings:,} settings of the grid x {len(self.methods):,} methods x "
                f"learning rates x seeds; expected at most {_MAX_TRIALS:,}. Remove some, or split the study"
            )

    def _rates(self, method: str) -> LrGrid:
        return LrGrid.from_config(self.methods[method].learning_rate or self.config.learning_rate)
