"""What a study has found, as numbers: every method at its best learning rate against the baseline."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ailora.studies.bootstrap import resampled_difference
from ailora.studies.conditions import Grid, Group
from ailora.studies.method_results import Measured, measure, report_split, value_of
from ailora.studies.statistics import (
    Difference,
    Estimate,
    Interval,
    Verdict,
    average_ranks,
    holm,
    paired_difference,
    verdict,
)
from ailora.studies.time_to_loss import Speed, speed_of
from ailora.studies.trial_storage import Trial
from ailora.studies.trial_table import scores as scores_of


@dataclass(frozen=True)
class Compared:
    """A method against the baseline on a task at a point.

    Attributes:
        difference: of the reported scores, paired by seed.
        adjusted_p: as Holm's procedure adjusts it over the report's family; None: fewer than two seeds in common.
        verdict: win, loss or tie; None: no seed in common.
        bootstrap: of the difference, over seeds and examples, where predictions are kept.
        speed: against the baseline's final validation loss.
    """

    difference: Difference | None
    adjusted_p: float | None
    verdict: Verdict | None
    bootstrap: Interval | None
    speed: Speed | None


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        grid: what was compared.
        measured: every group.
        compared: every group but the baseline's.
        ranks: method -> average rank over tasks and points; empty where there is only one.
    """

    grid: Grid
    measured: dict[Group, Measured]
    compared: dict[Group, Compared]
    ranks: dict[str, float]

    @property
    def places(self) -> Iterator[tuple[Group, list[Group]]]:
        """Every baseline's group, and those that are compared with it."""
        for base in (group for group in self.measured if group.method == self.grid.baseline):
            yield base, [group for group in self.compared if self.grid.baseline_of(group) == base]

    @property
    def family(self) -> int:
        """How many comparisons Holm's procedure corrects for."""
        return sum(found.adjusted_p is not None for found in self.compared.values())


def compare(trials: Sequence[Trial], grid: Grid, *, bootstrap: bool = True) -> Comparison:
    """Compare every method with the baseline.

    Args:
        trials: the study's, those of other versions left out.
        grid: the study.
        bootstrap: whether intervals over seeds and examples are made from the predictions that are kept.
    """
    scores = scores_of(trials, grid)
    measured = {group: measure(group, trials, grid, scores) for group in grid.groups}
    pairs = {group: grid.baseline_of(group) for group in grid.groups if group.method != grid.baseline}
    differences = {group: _difference(measured[group], measured[base], grid) for group, base in pairs.items()}
    names = {str(i): group for i, group in enumerate(pairs)}
    known = {
        name: found.p_value
        for name, group in names.items()
        if (found := differences[group]) and found.p_value is not None
    }
    adjusted = {names[name]: p for name, p in holm(known).items()}
    compared = {
        group: Compared(
            difference=differences[group],
            adjusted_p=adjusted.get(group),
            verdict=_verdict(differences[group], adjusted.get(group), grid.larger_is_better(group)),
            bootstrap=resampled_difference(measured[group], measured[base], grid) if bootstrap else None,
            speed=speed_of(measured[group], measured[base], trials),
        )
        for group, base in pairs.items()
    }
    return Comparison(grid, measured, compared, _ranks(measured, grid))


def _difference(ours: Measured, baseline: Measured, grid: Grid) -> Difference | None:
    split, metric = report_split(grid, ours.group), grid.metric_of(ours.group)
    mine, theirs = ({s: value_of(t, split, metric) for s, t in m.at_best.items()} for m in (ours, baseline))
    return paired_difference(mine, theirs) if mine.keys() & theirs.keys() else None


def _verdict(difference: Difference | None, adjusted: float | None, larger_is_better: bool) -> Verdict | None:
    return difference and verdict(difference, adjusted, larger_is_better=larger_is_better)


def _ranks(measured: Mapping[Group, Measured], grid: Grid) -> dict[str, float]:
    """Over tasks and points; a method that has no score there ranks last, one that knows no point is at all of them."""
    rows, better = {}, {}
    for task, point in dict.fromkeys((g.task, point) for g in measured for point in _points(grid)):
        here = [g for g in measured if g.task == task and set(g.point) <= point]
        name = str(here)
        rows[name] = {g.method: found.mean for g in here if (found := measured[g].score)}
        better[name] = grid.larger_is_better(here[0])
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=None).reindex(columns=list(grid.methods))
    return {} if len(frame) < 2 else average_ranks(frame, larger_is_better=better).to_dict()


def _points(grid: Grid) -> list[frozenset[tuple[str, str]]]:
    """All points of the grid, as of `Group.point`."""
    pairs = [[(key, json.dumps(value)) for value in values] for key, values in grid.config.grid.items()]
    return [frozenset(point) for point in itertools.product(*pairs)]


def described(found: Comparison) -> dict[str, Any]:
    """A comparison as plain data, for files and pages. JSON has no NaN: a number that is not finite is None."""
    return {
        "baseline": found.grid.baseline,
        "family": found.family,
        "average_ranks": found.ranks,
        "groups": [_finite(_described(found, group)) for group in found.measured],
    }


def _described(found: Comparison, group: Group) -> dict[str, Any]:
    measured, compared = found.measured[group], found.compared.get(group)
    facts: dict[str, Any] = {
        "task": group.task,
        "method": group.method,
        "point": group.values,
        "metric": found.grid.metric_of(group),
        "split": report_split(found.grid, group),
        "best_learning_rate": measured.progress.best,
        "complete": measured.progress.ended,
        "curve": {f"{rate:g}": _numbers(one) for rate, one in measured.curve.items()},
        "score": measured.score and _numbers(measured.score),
        "scores": {
            seed: value_of(trial, report_split(found.grid, group), found.grid.metric_of(group))
            for seed, trial in measured.at_best.items()
        },
        "good_range": measured.good and [measured.good.low, measured.good.high],
        "trials": {name: getattr(measured, name) for name in ("ended", "failed", "pruned", "open")},
        "errors": measured.errors,
        "forgetting": measured.forgetting,
    } | {name: measured.mean(name) for name in COSTS}
    if compared is not None:
        facts["against_baseline"] = {
            "difference": compared.difference and _numbers(compared.difference.estimate),
            "p": compared.difference and compared.difference.p_value,
            "adjusted_p": compared.adjusted_p,
            "verdict": compared.verdict and compared.verdict.value,
            "bootstrap": compared.bootstrap and [compared.bootstrap.low, compared.bootstrap.high],
            "steps_share": compared.speed and compared.speed.share,
            "speed_confirmed": compared.speed and compared.speed.confirmed,
        }
    return facts


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: What a run costs: facts of its outcome.
COSTS = ("trainable_parameters", "init_seconds", "train_seconds", "steps", "peak_memory_bytes", "adapter_bytes")


def _numbers(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "sd": found.sd, "n": found.n, "low": found.low, "high": found.high}
