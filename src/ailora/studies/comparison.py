"""What a study has found, as numbers: every method at its best learning rate against the baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ailora.recipes.language.metrics import TEXT_METRICS
from ailora.recipes.metrics import METRICS
from ailora.studies.curves import GoodRange, Reached, good_range, steps_to_reach
from ailora.studies.grid import Cell, Grid, Group
from ailora.studies.rates import Progress
from ailora.studies.results import scores as scores_of
from ailora.studies.stats import (
    Difference,
    Estimate,
    Interval,
    Verdict,
    average_ranks,
    bootstrap_difference,
    estimate,
    holm,
    paired_difference,
    verdict,
)
from ailora.studies.store import Status, Trial

_RESAMPLES = 500


@dataclass(frozen=True)
class Speed:
    """How soon a method has the final validation loss of the baseline's run with the same seed.

    Attributes:
        reached: by seed; a step of None is censored.
        seconds: median training seconds until then, over the seeds that reached it; None: no seed did.
        confirmed: whether runs that were scheduled to end there reached the loss, in the mean over seeds; None: none.
    """

    reached: dict[int, Reached]
    seconds: float | None
    confirmed: bool | None = None

    @property
    def share(self) -> float | None:
        """Median share of the steps, over the seeds that reached the loss; None: no seed did."""
        shares = [found.step / found.last_step for found in self.reached.values() if found.step is not None]
        return statistics.median(shares) if shares else None


@dataclass(frozen=True)
class Measured:
    """A method on a task at a point of the grid.

    Attributes:
        group: what was measured.
        progress: how far its search for the best rate is.
        curve: learning rate -> validation scores over seeds.
        at_best: seed -> its trial at the best rate.
        score: on the split that is reported; None: no trial there.
        good: the rates that are as good as the best; None: there is no best.
        ended, failed, pruned, open: numbers of trials, over all rates; `open` ones wait or run.
        errors: of the failed trials, each with the rate and seed.
    """

    group: Group
    progress: Progress
    curve: dict[float, Estimate]
    at_best: dict[int, Trial]
    score: Estimate | None
    good: GoodRange | None
    ended: int
    failed: int
    pruned: int
    open: int
    errors: list[str]

    def mean(self, fact: str) -> float | None:
        """The mean of an outcome's fact over the seeds at the best rate; None: no trial knows it."""
        found = [trial.outcome[fact] for trial in self.at_best.values() if trial.outcome and fact in trial.outcome]
        return statistics.fmean(found) if found else None

    @property
    def forgetting(self) -> float | None:
        """Mean rise of the loss on general text, in nats per token; None: not measured."""
        rises = [
            t.outcome["forgetting"]["rise"] for t in self.at_best.values() if t.outcome and "forgetting" in t.outcome
        ]
        return statistics.fmean(rises) if rises else None


@dataclass(frozen=True)
class Compared:
    """A method against the baseline on a task at a point.

    Attributes:
        difference: of the reported scores, paired by seed.
        adjusted_p: as Holm's procedure adjusts it over the report's family; None: fewer than two seeds in common.
        verdict: win, loss or tie.
        bootstrap: of the difference, over seeds and examples, where predictions are kept.
        speed: against the baseline's final validation loss.
    """

    difference: Difference | None
    adjusted_p: float | None
    verdict: Verdict
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
    measured = {group: _measure(group, trials, grid, scores) for group in grid.groups}
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
            bootstrap=_bootstrap(measured[group], measured[base], grid) if bootstrap else None,
            speed=_speed(measured[group], measured[base], trials),
        )
        for group, base in pairs.items()
    }
    return Comparison(grid, measured, compared, _ranks(measured, grid))


def report_split(grid: Grid, group: Group) -> str:
    """The split whose scores are reported: the test split, where the task has one."""
    return "test" if grid.base_of(group).data.test else "validation"


def point_of(metric: str) -> float:
    """One point in a metric's unit: a hundredth, or 1 where the metric goes to 100."""
    return 1.0 if metric in TEXT_METRICS else 0.01


def value_of(trial: Trial, split: str, metric: str) -> float:
    """A metric of a finished trial."""
    assert trial.outcome is not None
    return trial.outcome["metrics"][split][metric]


def _measure(group: Group, trials: Sequence[Trial], grid: Grid, scores: Mapping[Cell, float]) -> Measured:
    own = {cell: t for t in trials if (cell := Cell.of(t.cell)).group == group and cell.max_steps is None}
    done = {cell: trial for cell, trial in own.items() if trial.status is Status.DONE}
    progress = grid.progress_of(group, scores)
    metric = grid.metric_of(group)
    by_rate: dict[float, list[float]] = {}
    for cell, trial in done.items():
        by_rate.setdefault(cell.learning_rate, []).append(value_of(trial, "validation", metric))
    curve = {rate: estimate(found) for rate, found in sorted(by_rate.items())}
    at_best = {cell.seed: trial for cell, trial in done.items() if cell.learning_rate == progress.best}
    split = report_split(grid, group)
    failed = {cell: trial for cell, trial in own.items() if trial.status is Status.FAILED}
    return Measured(
        group=group,
        progress=progress,
        curve=curve,
        at_best=dict(sorted(at_best.items())),
        score=estimate(value_of(trial, split, metric) for trial in at_best.values()) if at_best else None,
        good=_good(curve, grid, group) if progress.best is not None else None,
        ended=len(done),
        failed=len(failed),
        pruned=sum(trial.status is Status.PRUNED for trial in own.values()),
        open=sum(not trial.ended for trial in own.values()),
        errors=[f"{cell.learning_rate:g}, seed {cell.seed}: {trial.error}" for cell, trial in failed.items()],
    )


def _good(curve: dict[float, Estimate], grid: Grid, group: Group) -> GoodRange | None:
    finite = {rate: found for rate, found in curve.items() if math.isfinite(found.mean)}
    if not finite:
        return None
    return good_range(finite, larger_is_better=grid.larger_is_better(group), point=point_of(grid.metric_of(group)))


def _difference(ours: Measured, baseline: Measured, grid: Grid) -> Difference | None:
    split, metric = report_split(grid, ours.group), grid.metric_of(ours.group)
    mine, theirs = ({s: value_of(t, split, metric) for s, t in m.at_best.items()} for m in (ours, baseline))
    return paired_difference(mine, theirs) if mine.keys() & theirs.keys() else None


def _verdict(difference: Difference | None, adjusted: float | None, larger_is_better: bool) -> Verdict:
    return Verdict.TIE if difference is None else verdict(difference, adjusted, larger_is_better=larger_is_better)


def _speed(ours: Measured, baseline: Measured, trials: Sequence[Trial]) -> Speed | None:
    finals = {seed: final_loss(trial) for seed, trial in baseline.at_best.items()}
    reached = {
        seed: steps_to_reach(trial.outcome["history"], finals[seed])
        for seed, trial in ours.at_best.items()
        if seed in finals and trial.outcome and trial.outcome["history"] and math.isfinite(finals[seed])
    }
    if not reached:
        return None
    seconds = [
        trial.outcome["train_seconds"] * found.step / found.last_step
        for seed, found in reached.items()
        if found.step is not None and (trial := ours.at_best[seed]).outcome
    ]
    return Speed(reached, statistics.median(seconds) if seconds else None, _confirmed(ours, finals, trials))


def _confirmed(ours: Measured, finals: Mapping[int, float], trials: Sequence[Trial]) -> bool | None:
    """Whether runs of `confirm_speed` end at or below the baseline's losses, in the mean over their seeds."""
    gaps = [
        final_loss(trial) - finals[cell.seed]
        for trial in trials
        if trial.status is Status.DONE
        and (cell := Cell.of(trial.cell)).group == ours.group
        and cell.max_steps is not None
        and cell.learning_rate == ours.progress.best
        and cell.seed in finals
    ]
    return statistics.fmean(gaps) <= 0 if gaps else None


def final_loss(trial: Trial) -> float:
    """The validation loss of a finished trial's last evaluation, NaN where there was none."""
    assert trial.outcome is not None
    history = trial.outcome["history"]
    return history[-1]["loss"] if history else math.nan


def _bootstrap(ours: Measured, baseline: Measured, grid: Grid) -> Interval | None:
    split, metric = report_split(grid, ours.group), grid.metric_of(ours.group)
    if metric not in METRICS:
        return None
    seeds = sorted(ours.at_best.keys() & baseline.at_best.keys())
    mine, theirs = ([_predictions(m.at_best[seed], split) for seed in seeds] for m in (ours, baseline))
    if not seeds or any(frame is None for frame in [*mine, *theirs]):
        return None
    frames: list[pd.DataFrame] = [frame for frame in [*mine, *theirs] if frame is not None]
    labels, names = pd.factorize(frames[0]["label"], sort=True)
    numbers = METRICS[metric].regression
    coded = [
        frame["prediction"].to_numpy(float) if numbers else pd.Index(names).get_indexer(pd.Index(frame["prediction"]))
        for frame in frames
    ]
    truth = frames[0]["label"].to_numpy(float) if numbers else labels
    score = partial(_score, metric, len(names))
    half = len(seeds)
    return bootstrap_difference(
        np.stack(coded[:half]), np.stack(coded[half:]), truth, metric=score, resamples=_RESAMPLES
    )


def _score(metric: str, classes: int, labels: np.ndarray, predictions: np.ndarray) -> float:
    return METRICS[metric].score(labels, predictions, classes)


def _predictions(trial: Trial, split: str) -> pd.DataFrame | None:
    assert trial.outcome is not None
    file = Path(trial.outcome["folder"]) / "predictions.parquet"
    if not file.is_file():
        return None
    frame = pd.read_parquet(file, columns=["split", "label", "prediction"])
    return frame.loc[frame["split"] == split].reset_index(drop=True)


def _ranks(measured: Mapping[Group, Measured], grid: Grid) -> dict[str, float]:
    """Over tasks and points; a method that has no score there ranks last, one that knows no point is at all of them."""
    rows, better = {}, {}
    for base in (group for group in measured if group.method == grid.baseline):
        name = f"{base.task} {grid.point_of(base)}"
        here = (g for g in measured if g.task == base.task and set(g.point) <= set(base.point))
        rows[name] = {g.method: found.mean for g in here if (found := measured[g].score)}
        better[name] = grid.larger_is_better(base)
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=None).reindex(columns=list(grid.methods))
    return {} if len(frame) < 2 else average_ranks(frame, larger_is_better=better).to_dict()


def described(found: Comparison) -> dict[str, Any]:
    """A comparison as plain data, for files and pages."""
    return {
        "baseline": found.grid.baseline,
        "family": found.family,
        "average_ranks": found.ranks,
        "groups": [_described(found, group) for group in found.measured],
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
            "verdict": compared.verdict.value,
            "bootstrap": compared.bootstrap and [compared.bootstrap.low, compared.bootstrap.high],
            "steps_share": compared.speed and compared.speed.share,
            "speed_confirmed": compared.speed and compared.speed.confirmed,
        }
    return facts


#: What a run costs: facts of its outcome.
COSTS = ("trainable_parameters", "init_seconds", "train_seconds", "steps", "peak_memory_bytes", "adapter_bytes")


def _numbers(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "sd": found.sd, "n": found.n, "low": found.low, "high": found.high}
