"""Results of a method on a task: scores over learning rates, and the runs at the best rate."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ailora.recipes.evaluation.text_metrics import TEXT_METRICS
from ailora.studies.lr_search import LrRange, SearchState, find_good_range
from ailora.studies.statistics import Estimate, estimate
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Condition, Status, Trial, TrialResult

#: Fields of `TrialResult` with the cost of a run.
COSTS = ("trainable_parameters", "init_seconds", "train_seconds", "steps", "peak_memory_bytes", "adapter_bytes")
#: Estimate of a rate with a failed selection seed. The good range ends before a rate whose mean is NaN.
_NOT_GOOD = Estimate(math.nan, None, 0, None, None)


@dataclass(frozen=True)
class MethodResult:
    """Results of a condition's trials.

    Attributes:
        condition: Method, task and setting.
        search: State of the search for its best rate.
        curve: Learning rate -> mean validation score over all seeds run at this rate. Rates may have different seeds.
        runs: Learning rate, ascending -> seed -> result of the run. Runs that confirm a time to loss, which have a
            schedule of their own (`max_steps`), are left out. So are rates that the search cannot reach, such as those
            of an earlier grid.
        selection_scores: Learning rate -> selection seed -> validation score. Rates with a failed selection seed are
            left out.
        at_best: Seed -> result of the run at the best rate.
        scores: Seed -> score of the run at the best rate, on the reported split.
        score: Mean of `scores`; None without a run at the best rate.
        good_range: Rates as good as the best; None without a best rate.
        status_counts: Status -> number of trials at all rates, including trials that confirm a time to loss.
        errors: Errors of the failed trials, each with the rate and seed.
    """

    condition: Condition
    search: SearchState
    curve: dict[float, Estimate]
    runs: dict[float, dict[int, TrialResult]]
    selection_scores: dict[float, dict[int, float]]
    at_best: dict[int, TrialResult]
    scores: dict[int, float]
    score: Estimate | None
    good_range: LrRange | None
    status_counts: Counter[Status]
    errors: list[str]

    @property
    def n_open(self) -> int:
        """Number of waiting and running trials."""
        return self.status_counts[Status.WAITING] + self.status_counts[Status.RUNNING]

    def mean(self, field: str) -> float | None:
        """Compute the mean of a field of `COSTS` over the seeds at the best rate.

        Returns None if no run measured the field.
        """
        return _mean(getattr(result, field) for result in self.at_best.values())

    @property
    def step_milliseconds(self) -> float | None:
        """Duration of a step of training at the best rate, evaluations included; None if not measured."""
        seconds, steps = self.mean("train_seconds"), self.mean("steps")
        return None if seconds is None or not steps else 1000 * seconds / steps

    @property
    def forgetting(self) -> float | None:
        """Mean rise of the loss on general text, in nats per token; None if not measured."""
        return _mean(result.forgetting["rise"] for result in self.at_best.values() if result.forgetting)


def collect_method_result(
    condition: Condition,
    trials: Sequence[Trial],
    design: StudyDesign,
    scores: Mapping[tuple[float, int], float],
    *,
    n_seeds: int,
) -> MethodResult:
    """Collect the results of a condition's trials.

    Args:
        condition: Condition of the study.
        trials: Trials of the whole study.
        design: Design of the study.
        scores: Scores of the condition from `StudyDesign.scores`.
        n_seeds: Number of seeds required at the condition's best rate, from `StudyDesign.plan_looks`.

    Returns:
        The results of the condition.
    """
    condition_trials = [trial for trial in trials if trial.spec.condition == condition]
    lr_search = design.lr_search(condition, n_seeds)
    reachable = {*lr_search.rates.reachable}
    runs = _group_runs(condition_trials, reachable)
    search = lr_search.plan(scores)
    metric, split = design.metric(condition), design.report_split(condition)
    curve = {
        rate: estimate(result.metrics["validation"][metric] for result in by_seed.values())
        for rate, by_seed in runs.items()
    }
    at_best = {} if search.best is None else runs.get(search.best, {})
    reported = {seed: result.metrics[split][metric] for seed, result in at_best.items()}
    seeds = design.selection_seeds
    # A rate at which a selection seed failed is excluded: the good range ends before such a rate.
    excluded = {rate for (rate, seed), score in scores.items() if seed in seeds and math.isnan(score)} & reachable
    selection_scores = {
        rate: {seed: by_seed[seed].metrics["validation"][metric] for seed in seeds if seed in by_seed}
        for rate, by_seed in runs.items()
        if rate not in excluded
    }
    return MethodResult(
        condition=condition,
        search=search,
        curve=curve,
        runs=runs,
        selection_scores=selection_scores,
        at_best=at_best,
        scores=reported,
        score=estimate(reported.values()) if reported else None,
        good_range=_find_good_range(selection_scores, excluded, search.best, design=design, condition=condition),
        status_counts=Counter(trial.status for trial in condition_trials),
        errors=[_describe_error(trial) for trial in condition_trials if trial.status is Status.FAIL],
    )


def _group_runs(trials: Iterable[Trial], rates: Container[float]) -> dict[float, dict[int, TrialResult]]:
    """Group complete runs with full schedules by learning rate, ascending, and seed."""
    results = {
        trial.spec: trial.result
        for trial in trials
        if trial.result
        and trial.status is Status.COMPLETE
        and trial.spec.max_steps is None
        and trial.spec.learning_rate in rates
    }
    runs: dict[float, dict[int, TrialResult]] = {}
    for spec in sorted(results, key=lambda spec: (spec.learning_rate, spec.seed)):
        runs.setdefault(spec.learning_rate, {})[spec.seed] = results[spec]
    return runs


def metric_point(metric: str) -> float:
    """Return a percentage point in a metric's unit: 1 for text metrics, 0.01 for all other metrics and for the loss."""
    return 1.0 if metric in TEXT_METRICS else 0.01


def _find_good_range(
    scores: Mapping[float, Mapping[int, float]],
    excluded: Iterable[float],
    best: float | None,
    *,
    design: StudyDesign,
    condition: Condition,
) -> LrRange | None:
    """Find the good range around the best rate, from the scores of the selection seeds."""
    if best is None or not scores.get(best):
        return None
    best_estimate = estimate(scores[best].values())
    curve = dict.fromkeys(excluded, _NOT_GOOD)
    for rate, by_seed in scores.items():
        # Rates far from the best may have run with the first seed only, so the difference is over their common seeds.
        differences = [score - scores[best][seed] for seed, score in by_seed.items() if seed in scores[best]]
        mean = best_estimate.mean + statistics.fmean(differences) if differences else math.nan
        # `find_good_range` reads only the mean, and the standard error of the best rate.
        curve[rate] = replace(best_estimate, mean=mean)
    larger_is_better, tolerance = design.larger_is_better(condition), metric_point(design.metric(condition))
    return find_good_range(curve, best, larger_is_better=larger_is_better, tolerance=tolerance)


def _describe_error(trial: Trial) -> str:
    spec = trial.spec
    steps = "" if spec.max_steps is None else f", {spec.max_steps} steps"
    return f"{spec.learning_rate:g}, seed {spec.seed}{steps}: {trial.error}"


def _mean(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return statistics.fmean(measured) if measured else None
