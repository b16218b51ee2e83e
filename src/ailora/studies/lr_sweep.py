"""Curves of a study: score over learning rate, and loss over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from ailora.errors import InputError
from ailora.studies.statistics import Estimate


def peak(curve: Mapping[float, float], *, larger_is_better: bool) -> float:
    """The learning rate with the best mean; of equal ones the smaller rate. A mean that is not finite never wins.

    Args:
        curve: learning rate -> mean score.
        larger_is_better: whether a larger score is.

    Raises:
        InputError: no learning rate has a finite mean.
    """
    rates = [rate for rate in sorted(curve) if math.isfinite(curve[rate])]
    if not rates:
        raise InputError(f"no learning rate of {sorted(curve)} has a finite mean")
    sign = 1 if larger_is_better else -1
    return max(rates, key=lambda rate: sign * curve[rate])


@dataclass(frozen=True)
class GoodRange:
    """Learning rates that are as good as the best one.

    Attributes:
        low: the smallest that was tried and is good; where it is the smallest that was tried, the range may go on.
        high: the largest, likewise.
        peak: the best.
        decades: log10(high / low).
    """

    low: float
    high: float
    peak: float
    decades: float


def good_range(curve: Mapping[float, Estimate], *, larger_is_better: bool, point: float) -> GoodRange:
    """The learning rates around the peak, without a gap, whose mean is within a margin of the peak's.

    The margin is a point or two standard errors of the peak, whichever is larger: less cannot be told from the peak.

    Args:
        curve: learning rate -> scores there.
        larger_is_better: whether a larger score is.
        point: one point in the metric's unit: 0.01 for an accuracy in [0, 1].

    Raises:
        InputError: no learning rate has a finite mean, one is not positive, or a negative point.
    """
    rates, means = sorted(curve), {rate: found.mean for rate, found in curve.items()}
    best = peak(means, larger_is_better=larger_is_better)
    if not (rates[0] > 0 and point >= 0):
        raise InputError(f"needed: learning rates above 0 and a point of 0 or more; got {rates}, {point}")
    margin = max(point, 2 * (curve[best].standard_error or 0.0))

    def good(rate: float) -> bool:
        # 0.91 - 0.90 > 0.01 in floats: scores and means are each rounded once, the margin once.
        rounding = 4 * np.finfo(float).eps * max(abs(means[rate]), abs(means[best]))
        return abs(means[rate] - means[best]) <= margin + rounding

    at = rates.index(best)
    low, high = min(takewhile(good, reversed(rates[: at + 1]))), max(takewhile(good, rates[at:]))
    return GoodRange(low, high, best, math.log10(high / low))


@dataclass(frozen=True)
class Reached:
    """When a loss was reached.

    Attributes:
        step: of the first evaluation at or below it; None where the run was censored: not by `last_step`.
        last_step: of the last evaluation.
    """

    step: int | None
    last_step: int


def steps_to_reach(history: Sequence[Mapping[str, Any]], target: float) -> Reached:
    """The first evaluation whose loss is at or below a target; a loss of NaN never is.

    Runs compare only where they are evaluated at the same steps: a step is known no better than their distance.

    Args:
        history: evaluations, each with `step` and `loss`, in any order.
        target: the loss to reach.

    Raises:
        InputError: no evaluation.
    """
    if not history:
        raise InputError("a history without evaluations has no last step")
    reached = (record["step"] for record in history if record["loss"] <= target)
    return Reached(min(reached, default=None), max(record["step"] for record in history))
