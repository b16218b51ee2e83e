"""How soon a method has the baseline's final loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ailora.studies.conditions import Cell
from ailora.studies.lr_sweep import Reached, steps_to_reach
from ailora.studies.method_results import Measured, final_loss
from ailora.studies.trial_storage import Status, Trial


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


def speed_of(ours: Measured, baseline: Measured, trials: Sequence[Trial]) -> Speed | None:
    """When a method had the baseline's final losses; None: no seed says.

    Args:
        ours, baseline: the two.
        trials: of the whole study, those that confirm speed among them.
    """
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
