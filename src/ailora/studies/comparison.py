"""Results of a study as numbers: every method at its best learning rate against the baseline."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from ailora.studies.bootstrap import bootstrap_score_difference
from ailora.studies.choice_importance import Importance, measure_importance
from ailora.studies.method_results import COSTS, MethodResult, collect_method_result
from ailora.studies.rate_certainty import RateCertainty, measure_rate_certainty
from ailora.studies.shared_rate import SharedRates, compare_shared_rates
from ailora.studies.statistics import (
    Difference,
    Interval,
    average_ranks,
    paired_difference,
)
from ailora.studies.study_design import StudyDesign
from ailora.studies.time_to_loss import TimeToLoss, measure_time_to_loss
from ailora.studies.trial import Condition, Status, Trial, setting_name
from ailora.studies.verdicts import Judgement, StudyVerdict


@dataclass(frozen=True)
class BaselineComparison:
    """Comparison of a method with the baseline, on a task at a setting.

    A look is a planned number of seeds at which the study is judged (see `sequential_tests`).

    Attributes:
        difference: Difference of the reported scores, paired by seed, with a t-interval before the first look and a
            sequential interval from then on. None without a seed in common.
        judgement: Verdict at the latest look; None before the first look, or without a seed in common.
        bootstrap: Bootstrap interval of the difference, over seeds and examples; None without stored predictions.
        time_to_loss: Time until the method reaches the baseline's final validation loss; None without evaluations.
        shared_rates: Differences at the rates run by both, and the learning rate factor between their score curves.
    """

    difference: Difference | None
    judgement: Judgement | None
    bootstrap: Interval | None
    time_to_loss: TimeToLoss | None
    shared_rates: SharedRates

    @property
    def verdict(self) -> str | None:
        """Verdict in words, undecided before the first look; None without a seed in common."""
        return None if self.difference is None else str(self.judgement or StudyVerdict.UNDECIDED)

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        without_judgement = {"verdict": self.verdict, "p": None, "adjusted_p": None}
        return {
            "difference": self.difference and asdict(self.difference.estimate),
            **(self.judgement.to_dict() if self.judgement else without_judgement),
            "bootstrap": self.bootstrap and [self.bootstrap.low, self.bootstrap.high],
            "steps_share": self.time_to_loss and self.time_to_loss.share,
            "speed_confirmed": self.time_to_loss and self.time_to_loss.confirmed,
            "shared_rates": self.shared_rates.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Results of a study.

    Attributes:
        design: Design of the study.
        results: Condition -> results of its trials.
        against_baseline: Condition -> its comparison with the baseline, without the baseline's conditions.
        average_ranks: Method -> average rank over tasks and settings, without methods that still search for a best
            rate; empty for a single task and setting, and for a single method.
        n_pending: Number of comparisons before their first look.
        rate_certainties: Condition -> certainty of its best rate; conditions with a single rate are left out.
    """

    design: StudyDesign
    results: dict[Condition, MethodResult]
    against_baseline: dict[Condition, BaselineComparison]
    average_ranks: dict[str, float]
    n_pending: int
    rate_certainties: dict[Condition, RateCertainty]

    def by_baseline(self) -> Iterator[tuple[Condition, list[Condition]]]:
        """Iterate over the baseline's conditions, each with the conditions compared with it."""
        for base in (condition for condition in self.results if condition.method == self.design.baseline):
            yield base, [c for c in self.against_baseline if self.design.baseline_for(c) == base]

    @property
    def family_size(self) -> int:
        """Number of comparisons in the family of Holm's procedure."""
        judgements = [against.judgement for against in self.against_baseline.values()]
        return self.n_pending + sum(j is not None and j.adjusted_p is not None for j in judgements)

    @functools.cached_property
    def importances(self) -> dict[str, list[Importance]]:
        """Task -> importance of each choice, measured from the validation scores of all settings and rates.

        A score is the mean over the selection seeds that have run at all settings and rates of the task.
        """
        importances: dict[str, list[Importance]] = {}
        for task in dict.fromkeys(condition.task for condition in self.results):
            settings: list[dict[str, float | str]] = []
            scores: list[float] = []
            conditions = [c for c in self.results if c.task == task]
            scores_by_seed = [
                by_seed for c in conditions for by_seed in self.results[c].selection_scores.values() if by_seed
            ]
            seeds = [seed for seed in self.design.selection_seeds if all(seed in by_seed for by_seed in scores_by_seed)]
            if not seeds:
                continue
            for condition in conditions:
                values = condition.values
                # A method that does not use a grid key has no value for the key.
                grid = {setting_name(key): str(values.get(key, "none")) for key in self.design.config.grid}
                for rate, by_seed in self.results[condition].selection_scores.items():
                    if by_seed:
                        settings.append({"learning rate": rate, "method": condition.method, **grid})
                        scores.append(math.fsum(by_seed[seed] for seed in seeds) / len(seeds))
            if measured := measure_importance(settings, scores):
                importances[task] = measured
        return importances

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data for JSON, which has no NaN: numbers that are not finite become None."""
        return {
            "baseline": self.design.baseline,
            "family": self.family_size,
            "looks": list(self.design.looks.counts),
            "average_ranks": self.average_ranks,
            "importances": {task: [i.to_dict() for i in importances] for task, importances in self.importances.items()},
            "groups": [_replace_nonfinite(self._condition_dict(condition)) for condition in self.results],
        }

    def _condition_dict(self, condition: Condition) -> dict[str, object]:
        result, design = self.results[condition], self.design
        counts, good = result.status_counts, result.good_range
        data: dict[str, object] = {
            "task": condition.task,
            "method": condition.method,
            "point": condition.values,
            "metric": design.metric(condition),
            "split": design.report_split(condition),
            "best_learning_rate": result.search.best,
            "complete": result.search.ended,
            "curve": {f"{rate:g}": asdict(estimate) for rate, estimate in result.curve.items()},
            "score": result.score and asdict(result.score),
            "scores": result.scores,
            "good_range": good and [good.low, good.high],
            "trials": {
                "ended": counts[Status.COMPLETE],
                "failed": counts[Status.FAIL],
                "pruned": counts[Status.PRUNED],
                "open": result.n_open,
            },
            "errors": result.errors,
            "forgetting": result.forgetting,
            **{name: result.mean(name) for name in COSTS},
        }
        if condition in self.rate_certainties:
            data["rate_certainty"] = self.rate_certainties[condition].to_dict()
        if condition in self.against_baseline:
            data["against_baseline"] = self.against_baseline[condition].to_dict()
        return data


def compare(trials: Sequence[Trial], design: StudyDesign, *, bootstrap: bool = True) -> Comparison:
    """Compare every method with the baseline.

    Args:
        trials: Trials of the study, from `TrialKeys.matching_trials`.
        design: Design of the study.
        bootstrap: Whether to resample examples, from stored predictions, for intervals and the certainty of rates.

    Returns:
        Results of every condition, and their comparisons with the baseline.
    """
    scores, looks = design.scores(trials), design.plan_looks(trials)
    results = {
        c: collect_method_result(c, trials, design, scores[c], n_seeds=looks.n_seeds[c]) for c in design.conditions
    }
    baseline_conditions = {c: design.baseline_for(c) for c in design.conditions if c.method != design.baseline}
    against_baseline: dict[Condition, BaselineComparison] = {}
    for condition, base in baseline_conditions.items():
        method, baseline, judgement = results[condition], results[base], looks.judgements.get(condition)
        difference = _difference(method, baseline, judgement)
        against_baseline[condition] = BaselineComparison(
            difference=difference,
            judgement=judgement,
            bootstrap=bootstrap_score_difference(method, baseline, design) if bootstrap else None,
            time_to_loss=measure_time_to_loss(method, baseline, trials),
            shared_rates=compare_shared_rates(method, baseline, difference, design),
        )
    certainties = {
        condition: certainty
        for condition, result in results.items()
        if (certainty := measure_rate_certainty(result, design, read_predictions=bootstrap)) is not None
    }
    ranks = _average_ranks(results, design)
    return Comparison(design, results, against_baseline, ranks, looks.n_pending, certainties)


def _difference(method: MethodResult, baseline: MethodResult, judgement: Judgement | None) -> Difference | None:
    """Return the difference at the latest look, or over all shared seeds while no look has two differences."""
    if not method.scores.keys() & baseline.scores.keys():
        return None
    difference = paired_difference(method.scores, baseline.scores)
    if judgement is None or judgement.difference.n < 2:
        return difference
    return Difference(judgement.difference, judgement.seeds)


def _average_ranks(results: Mapping[Condition, MethodResult], design: StudyDesign) -> dict[str, float]:
    """Rank methods over tasks and settings; a method without a score ranks last.

    Methods that still search for a best rate are left out: a method is not worse because it runs later.
    """
    searching = {c.method for c, result in results.items() if result.score is None and not result.search.ended}
    methods = [method for method in design.methods if method not in searching]
    settings = [
        dict(zip(design.config.grid, values, strict=True)) for values in itertools.product(*design.config.grid.values())
    ]
    rows: dict[tuple[Condition, ...], dict[str, float]] = {}
    for task, values in itertools.product(dict.fromkeys(c.task for c in results), settings):
        # As in `Condition.setting`, values are JSON.
        setting = {*Condition.from_values(task, "", values).setting}
        # A method that does not use a grid key has a single condition, which counts at every value of the key.
        conditions = tuple(c for c in results if c.task == task and setting.issuperset(c.setting))
        rows[conditions] = {c.method: score.mean for c in conditions if (score := results[c].score)}
    if len(rows) < 2 or len(methods) < 2:
        return {}
    frame = pd.DataFrame(list(rows.values()), columns=methods)
    larger_is_better = {i: design.larger_is_better(conditions[0]) for i, conditions in enumerate(rows)}
    return average_ranks(frame, larger_is_better=larger_is_better).to_dict()


def _replace_nonfinite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
