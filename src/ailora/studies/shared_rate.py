"""Differences from the baseline at shared learning rates, and the rate factor behind them.

An init with large factors acts like a larger learning rate. At small rates, its method is ahead of the baseline; at
large rates, it is behind; with each method at its own best rate, the two are level. A comparison at a single rate
cannot distinguish this effect from a better method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from ailora.studies.method_results import MethodResult, metric_point
from ailora.studies.rate_shift import Curve, RateShift, fit_rate_shift
from ailora.studies.statistics import Difference, paired_difference
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import TrialResult


class Position(StrEnum):
    """Position of a method relative to the baseline, by the mean difference alone."""

    AHEAD = "ahead"
    BEHIND = "behind"
    LEVEL = "level"

    @classmethod
    def from_difference(cls, mean: float, *, larger_is_better: bool, point: float) -> Position:
        """Return the position of a mean difference, method minus baseline.

        Args:
            mean: The mean difference; NaN counts as level.
            larger_is_better: Whether larger scores are better.
            point: Size of a percentage point in the metric's unit, from `metric_point`.
        """
        # Published tables show tenths of a percentage point: a difference below half a tenth would not be visible.
        if not abs(mean) >= point / 20:
            return cls.LEVEL
        return cls.AHEAD if (mean > 0) is larger_is_better else cls.BEHIND


@dataclass(frozen=True)
class SharedRates:
    """A method and the baseline at their shared rates.

    Attributes:
        differences: Rate -> difference of the scores on the reported split, paired by seed, rates ascending.
        positions: Rate -> position of the method by its difference there.
        at_best: Position of the method when both run at their best rates; None if these runs have no seed in common.
        shift: Factor of the rate that turns the baseline's validation curve into the method's.
    """

    differences: dict[float, Difference]
    positions: dict[float, Position]
    at_best: Position | None
    shift: RateShift

    @property
    def misleads(self) -> bool:
        """Whether a comparison at any shared rate misleads, see `misleads_at`."""
        return any(self.misleads_at(rate) for rate in self.positions)

    def misleads_at(self, rate: float) -> bool:
        """Return whether the method is ahead or behind at a rate, but not when both run at their best rates."""
        # A level position does not mislead: at rates too small for learning, all methods are level.
        return self.at_best is not None and self.positions[rate] not in (self.at_best, Position.LEVEL)

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        rates = {
            f"{rate:g}": asdict(difference.estimate) | {"position": self.positions[rate].value}
            for rate, difference in self.differences.items()
        }
        return {"rates": rates, "at_best": self.at_best and self.at_best.value, "shift": self.shift.to_dict()}


def compare_shared_rates(
    method: MethodResult, baseline: MethodResult, at_best: Difference | None, design: StudyDesign
) -> SharedRates:
    """Compare a method with the baseline at every shared rate.

    Args:
        method: Results of the method.
        baseline: Results of the baseline.
        at_best: Difference of their scores when both run at their best rates; None without a seed in common.
        design: Design of the study.

    Returns:
        The differences at the shared rates, and the factor between the curves.
    """
    condition = method.condition
    metric, split = design.metric(condition), design.report_split(condition)
    larger_is_better = design.larger_is_better(condition)
    differences = {
        rate: paired_difference(_scores(method.runs[rate], split, metric), _scores(baseline.runs[rate], split, metric))
        for rate in method.runs
        if rate in baseline.runs and method.runs[rate].keys() & baseline.runs[rate].keys()
    }

    def position(difference: Difference) -> Position:
        return Position.from_difference(
            difference.estimate.mean, larger_is_better=larger_is_better, point=metric_point(metric)
        )

    return SharedRates(
        differences=differences,
        positions={rate: position(difference) for rate, difference in differences.items()},
        at_best=at_best and position(at_best),
        shift=fit_rate_shift(
            _validation_curves(method, metric), _validation_curves(baseline, metric), tolerance=metric_point(metric)
        ),
    )


def _scores(runs: Mapping[int, TrialResult], split: str, metric: str) -> dict[int, float]:
    return {seed: result.metrics[split][metric] for seed, result in runs.items()}


def _validation_curves(result: MethodResult, metric: str) -> dict[int, Curve]:
    """Return seed -> validation score over the rate."""
    curves: dict[int, dict[float, float]] = {}
    for rate, runs in result.runs.items():
        for seed, score in _scores(runs, "validation", metric).items():
            curves.setdefault(seed, {})[rate] = score
    return dict(curves)
