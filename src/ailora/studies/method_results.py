"""One method on one task: its curve over learning rates, and its trials at the best one."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ailora.recipes.evaluation.text_metrics import TEXT_METRICS
from ailora.studies.conditions import Cell, Grid, Group
from ailora.studies.lr_search import Progress
from ailora.studies.lr_sweep import GoodRange, good_range
from ailora.studies.statistics import Estimate, estimate
from ailora.studies.trial_storage import Status, Trial


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
    def step_milliseconds(self) -> float | None:
        """Of a step of training at the best rate, evaluations included; None: no trial knows it."""
        seconds, steps = self.mean("train_seconds"), self.mean("steps")
        return None if seconds is None or not steps else 1000 * seconds / steps

    @property
    def forgetting(self) -> float | None:
        """Mean rise of the loss on general text, in nats per token; None: not measured."""
        rises = [
            t.outcome["forgetting"]["rise"] for t in self.at_best.values() if t.outcome and "forgetting" in t.outcome
        ]
        return statistics.fmean(rises) if rises else None


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


def measure(group: Group, trials: Sequence[Trial], grid: Grid, scores: Mapping[Cell, float]) -> Measured:
    """What a group's trials have shown.

    Args:
        group: one of the study's.
        trials: of the whole study.
        grid: the study.
        scores: of the cells that have ended, as `results.scores`.
    """
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


def final_loss(trial: Trial) -> float:
    """The validation loss of a finished trial's last evaluation, NaN where there was none."""
    assert trial.outcome is not None
    history = trial.outcome["history"]
    return history[-1]["loss"] if history else math.nan
