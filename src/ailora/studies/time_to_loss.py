"""Time until a method reaches the baseline's final loss, confirmed by runs whose schedules end at this time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ailora.errors import InputError
from ailora.studies.method_results import MethodResult
from ailora.studies.trial import Trial, TrialResult


@dataclass(frozen=True)
class FirstReached:
    """First evaluation of a run at or below a loss.

    Attributes:
        step: Step of the evaluation; None if the run has not reached the loss by `last_step`.
        last_step: Step of the last evaluation.
    """

    step: int | None
    last_step: int

    @property
    def share(self) -> float | None:
        """Share of the run's steps until this evaluation; None if the run has not reached the loss."""
        # With `eval_on_start` and no other evaluation, the last step is 0.
        return None if self.step is None else self.step / max(self.last_step, 1)


@dataclass(frozen=True)
class TimeToLoss:
    """Time until a method reaches the final validation loss of the baseline's run with the same seed.

    Attributes:
        reached: Seed -> first evaluation at or below the loss.
        seconds: Median training time until this evaluation, in seconds, over the seeds that reached the loss; None if
            no seed did.
        confirmed: Whether runs scheduled to end at this evaluation reach the loss, on average over seeds. A failed run
            counts as not reaching the loss. None if there are no such runs, or if some have not ended. Also None if
            they reach the loss, but the full-length run of a seed does not.
    """

    reached: dict[int, FirstReached]
    seconds: float | None
    confirmed: bool | None = None

    @property
    def share(self) -> float | None:
        """Median share of the steps, over the seeds that reached the loss; None if no seed did."""
        shares = [share for first in self.reached.values() if (share := first.share) is not None]
        return statistics.median(shares) if shares else None

    @property
    def confirmation_steps(self) -> int | None:
        """Length of the runs that confirm the time: the median over seeds of the step that reaches the loss.

        None unless all seeds reach the loss after the start and before their last evaluation.
        """
        # In the middle of the full schedule, the learning rate is still high. Only a schedule that ends at this step is
        # comparable with the baseline's schedule at its end.
        steps = [f.step for f in self.reached.values() if f.step is not None and 0 < f.step < f.last_step]
        return math.ceil(statistics.median(steps)) if len(steps) == len(self.reached) else None


def measure_time_to_loss(method: MethodResult, baseline: MethodResult, trials: Sequence[Trial]) -> TimeToLoss | None:
    """Measure the time until a method reaches the baseline's final losses.

    Args:
        method: Results of the method.
        baseline: Results of the baseline.
        trials: Trials of the whole study, including those that confirm a time to loss.

    Returns:
        The time; None if no seed has evaluations of both methods.
    """
    final_losses = {seed: loss for seed, run in baseline.at_best.items() if math.isfinite(loss := _final_loss(run))}
    runs = {seed: run for seed, run in method.at_best.items() if seed in final_losses and run.history}
    if not runs:
        return None
    reached = {seed: find_first_reached(run.history, final_losses[seed]) for seed, run in runs.items()}
    seconds = [
        train_seconds * share
        for seed, first in reached.items()
        if (share := first.share) is not None and (train_seconds := runs[seed].train_seconds) is not None
    ]
    time_to_loss = TimeToLoss(reached, statistics.median(seconds) if seconds else None)
    confirmed = _is_confirmed(method, final_losses, trials, steps=time_to_loss.confirmation_steps)
    if confirmed and time_to_loss.confirmation_steps is None:
        # The runs were planned before a seed failed to reach the loss: they can refute the time, but not confirm it.
        confirmed = None
    return replace(time_to_loss, confirmed=confirmed)


def find_first_reached(history: Sequence[Mapping[str, float]], target: float) -> FirstReached:
    """Find the first evaluation with a loss at or below a target; a loss of NaN does not count.

    Args:
        history: Evaluations, each with `step` and `loss`, in any order.
        target: The loss to reach.

    Returns:
        The step of this evaluation, and the last step.

    Raises:
        InputError: There is no evaluation.
    """
    if not history:
        raise InputError("a history without evaluations has no last step")
    steps = (int(record["step"]) for record in history if record["loss"] <= target)
    return FirstReached(min(steps, default=None), max(int(record["step"]) for record in history))


def _is_confirmed(
    method: MethodResult, final_losses: Mapping[int, float], trials: Sequence[Trial], *, steps: int | None
) -> bool | None:
    """Return whether runs with shorter schedules reach the baseline's losses, on average over their seeds.

    Args:
        method: Results of the method.
        final_losses: Seed -> final loss of the baseline.
        trials: Trials of the whole study.
        steps: Length of the schedules; None for any length.

    Returns:
        Whether the runs reach the losses; None if there are no such runs, or if some have not ended.
    """
    # With further seeds, the median may move: runs with the earlier length say nothing about the new length.
    runs = [
        trial
        for trial in trials
        if (spec := trial.spec).condition == method.condition
        and spec.max_steps is not None
        and (steps is None or spec.max_steps == steps)
        and spec.learning_rate == method.search.best
        and spec.seed in final_losses
    ]
    if not runs or not all(trial.ended for trial in runs):
        return None
    # A failed run must not confirm the time: its infinite gap makes the mean infinite.
    gaps = [_final_loss(trial.result) - final_losses[trial.spec.seed] if trial.result else math.inf for trial in runs]
    return statistics.fmean(gaps) <= 0


def _final_loss(result: TrialResult) -> float:
    """Return the validation loss of the last evaluation; NaN without evaluations."""
    return result.history[-1]["loss"] if result.history else math.nan
