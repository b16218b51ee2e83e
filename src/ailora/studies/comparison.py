"""What a study has found, as numbers: every method at its best learning rate against the baseline."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
        confirmed: whether runs that were scheduled to end there reached the loss, in the mean over seeds; one that
            failed did not. None: there are none, or not all of them have ended.
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
        ended, failed, pruned, open: numbers of trials, over all rates, those that confirm speed included; `open` ones
            wait or run.
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
    every = {cell: t for t in trials if (cell := Cell.of(t.cell)).group == group}
    own = {cell: trial for cell, trial in every.items() if cell.max_steps is None}
    done = {cell: trial for cell, trial in own.items() if trial.status is Status.DONE}
    progress = grid.progress_of(group, scores)
    metric = grid.metric_of(group)
    by_rate: dict[float, list[float]] = {}
    for cell, trial in done.items():
        by_rate.setdefault(cell.learning_rate, []).append(value_of(trial, "validation", metric))
    curve = {rate: estimate(found) for rate, found in sorted(by_rate.items())}
    at_best = {cell.seed: trial for cell, trial in done.items() if cell.learning_rate == progress.best}
    split = report_split(grid, group)
    lost = {cell.learning_rate for cell, score in scores.items() if cell in own and _is_lost(cell, score, grid)}
    count = Counter(trial.status for trial in every.values())
    return Measured(
        group=group,
        progress=progress,
        curve=curve,
        at_best=dict(sorted(at_best.items())),
        score=estimate(value_of(trial, split, metric) for trial in at_best.values()) if at_best else None,
        good=_good(curve, lost, grid, group) if progress.best is not None else None,
        ended=count[Status.DONE],
        failed=count[Status.FAILED],
        pruned=count[Status.PRUNED],
        open=count[Status.WAITING] + count[Status.RUNNING],
        errors=[_told(cell, trial) for cell, trial in every.items() if trial.status is Status.FAILED],
    )


def _is_lost(cell: Cell, score: float, grid: Grid) -> bool:
    """Whether a cell's rate is out, as for the search: one of the seeds that choose it failed there."""
    return math.isnan(score) and cell.seed in grid.config.seeds


def _told(cell: Cell, trial: Trial) -> str:
    steps = "" if cell.max_steps is None else f", {cell.max_steps} steps"
    return f"{cell.learning_rate:g}, seed {cell.seed}{steps}: {trial.error}"


def _good(curve: Mapping[float, Estimate], lost: Iterable[float], grid: Grid, group: Group) -> GoodRange | None:
    # A rate that is out is a gap in the range, and not left out of it.
    sound = {**curve, **dict.fromkeys(lost, Estimate(math.nan, None, 0, None, None))}
    if not any(math.isfinite(found.mean) for found in sound.values()):
        return None
    return good_range(sound, larger_is_better=grid.larger_is_better(group), point=point_of(grid.metric_of(group)))


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
    runs = {
        cell: trial
        for trial in trials
        if (cell := Cell.of(trial.cell)).group == ours.group
        and cell.max_steps is not None
        and cell.learning_rate == ours.progress.best
        and cell.seed in finals
    }
    if not runs or not all(trial.ended for trial in runs.values()):
        return None
    gaps = [
        final_loss(trial) - finals[cell.seed] if trial.status is Status.DONE else math.inf
        for cell, trial in runs.items()
    ]
    return statistics.fmean(gaps) <= 0


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
    if not all(frame["label"].equals(frames[0]["label"]) for frame in frames):
        return None
    columns = [frames[0]["label"].to_numpy(), *(frame["prediction"].to_numpy() for frame in frames)]
    truth, *coded = _coded(columns, metric)
    classes = 1 if METRICS[metric].regression else len(frames[0]["scores"].iloc[0])
    score, half = partial(_score, metric, classes), len(seeds)
    with warnings.catch_warnings():
        # scikit-learn warns of every resample without a rare class.
        warnings.simplefilter("ignore")
        return bootstrap_difference(
            np.stack(coded[:half]), np.stack(coded[half:]), truth, metric=score, resamples=_RESAMPLES
        )


def _coded(columns: Sequence[np.ndarray], metric: str) -> list[np.ndarray]:
    """Labels and predictions as numbers, or as ids of classes in the order of `Labels`: F1 is that of the second."""
    if METRICS[metric].regression:
        return [column.astype(float) for column in columns]
    names = {name for column in columns for name in column}
    try:
        ordered = sorted(names, key=int)
    except ValueError:
        ordered = sorted(names)
    ids = {name: number for number, name in enumerate(ordered)}
    return [np.array([ids[name] for name in column], dtype=int) for column in columns]


def _score(metric: str, classes: int, labels: np.ndarray, predictions: np.ndarray) -> float:
    return METRICS[metric].score(labels, predictions, classes)


def _predictions(trial: Trial, split: str) -> pd.DataFrame | None:
    assert trial.outcome is not None
    file = Path(trial.outcome["folder"]) / "predictions.parquet"
    if not file.is_file():
        return None
    frame = pd.read_parquet(file)
    own = frame.loc[frame["split"] == split].reset_index(drop=True)
    return None if own.empty else own


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
            "verdict": compared.verdict.value,
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
