"""Search for the best learning rate of a method, and for rates as good as the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ailora.errors import InputError
from ailora.studies.statistics import ROUNDING, Estimate, merge_ties
from ailora.studies.study_config import RateConfig

#: Maximum extension of a range beyond each end.
MAX_EXTENSION_DECADES = 2


@dataclass(frozen=True)
class LrGrid:
    """Learning rates of a search.

    Attributes:
        initial: Rates of the first runs, in ascending order.
        per_decade: Number of rates per factor of ten; None for rates listed one by one, which are never extended.
    """

    initial: tuple[float, ...]
    per_decade: int | None = None

    @classmethod
    def from_config(cls, config: RateConfig) -> LrGrid:
        """Build the grid of a study file's `learning_rate`."""
        if config.values is not None:
            return cls(tuple(sorted(config.values)))
        assert config.from_ is not None
        # The hundredth of a step absorbs rounding of the logarithms: 1e-5 to 1e-2 at 4 per decade always has 13 rates.
        steps = math.floor(config.decades * config.per_decade + 0.01)
        return cls(tuple(_rate_after(config.from_, k, config.per_decade) for k in range(steps + 1)), config.per_decade)

    @property
    def reachable(self) -> list[float]:
        """All rates the search may try. A range may extend by `MAX_EXTENSION_DECADES` beyond each end."""
        if self.per_decade is None:
            return list(self.initial)
        n_beyond = MAX_EXTENSION_DECADES * self.per_decade
        below = [_rate_after(self.initial[0], -k, self.per_decade) for k in range(n_beyond, 0, -1)]
        above = [_rate_after(self.initial[-1], k, self.per_decade) for k in range(1, n_beyond + 1)]
        return [*below, *self.initial, *above]

    def neighbours(self, rate: float) -> list[float]:
        """Return the next reachable rates below and above a rate."""
        rates = self.reachable
        index = rates.index(rate)
        return [*rates[max(0, index - 1) : index], *rates[index + 1 : index + 2]]


@dataclass(frozen=True)
class SearchState:
    """State of the search for a method's best rate.

    Attributes:
        required: (rate, seed) of all required runs so far, ended runs included.
        best: The best rate; None while unknown, or if every rate has a failed run.
        ended: Whether all required runs have ended.
    """

    required: list[tuple[float, int]]
    best: float | None = None
    ended: bool = False


@dataclass(frozen=True)
class LrSearch:
    """Search for a method's best rate, followed by runs with all seeds at this rate.

    Attributes:
        rates: Rates to search.
        seeds: Seeds whose mean score chooses the best rate; the first seed runs at every tried rate.
        extra_seeds: Seeds that run only at the best rate.
        everywhere: Whether `seeds` all run at every tried rate.
    """

    rates: LrGrid
    seeds: Sequence[int]
    extra_seeds: Sequence[int] = ()
    everywhere: bool = False

    def plan(self, scores: Mapping[tuple[float, int], float]) -> SearchState:
        """Plan the runs required by the scores so far.

        Args:
            scores: (rate, seed) -> score of an ended run, larger is better; NaN for a failed run.

        Returns:
            The required runs, and the best rate once these have ended.
        """
        first_seed_only, initial = self.seeds[:1], self.rates.initial
        required = _pairs(initial, first_seed_only) | _pairs(initial, self.seeds if self.everywhere else [])
        if not required.keys() <= scores.keys():
            return SearchState(list(required))
        # Rates that the first seed has run at, and rates that all seeds have run at.
        tried = {*initial}
        measured = {*initial} if self.everywhere else set[float]()
        best = None
        # If the study file was extended, all seeds may have run at rates of its earlier grid. As soon as all seeds have
        # run at a rate, rates with a single seed are no longer candidates, and the new rates would never be chosen. So
        # the first pass ignores the earlier rates, and the second includes them.
        for with_earlier in (False, True):
            if with_earlier:
                earlier_rates = {rate for rate in self.rates.reachable if (rate, first_seed_only[0]) in scores}
                required |= _pairs(sorted(earlier_rates), first_seed_only)
                tried |= earlier_rates
                measured |= {rate for rate in earlier_rates if all((rate, seed) in scores for seed in self.seeds)}
            while (best := self._find_promising_rate(scores, tried, measured)) is not None:
                near = self.rates.neighbours(best)
                tried |= {*near}
                # First, the first seed decides whether the range extends; then all seeds decide which rate is best.
                for seeds in (first_seed_only, self.seeds):
                    # A rate with a failed run cannot be the best, so its other seeds need not run.
                    without_failure = [
                        r for r in (best, *near) if not any(math.isnan(scores.get((r, s), 0.0)) for s in self.seeds)
                    ]
                    required |= _pairs(without_failure, seeds)
                    if not required.keys() <= scores.keys():
                        return SearchState(list(required))
                    if seeds is self.seeds:
                        measured |= {best, *near}
                    if self._find_promising_rate(scores, tried, measured) != best:
                        break
                else:
                    # All seeds confirm the best rate among its neighbours.
                    break
        if best is not None:
            required |= _pairs([best], self.extra_seeds)
        return SearchState(list(required), best, ended=required.keys() <= scores.keys())

    def _find_promising_rate(
        self, scores: Mapping[tuple[float, int], float], tried: Iterable[float], measured: Container[float]
    ) -> float | None:
        """Return the measured rate with the best mean over all seeds; until a rate is measured, the first seed decides.

        Args:
            scores: (rate, seed) -> score.
            tried: Rates with a run of the first seed.
            measured: Rates whose seeds have all run; after a failed run, the other seeds may be missing.

        Returns:
            The rate; None if every rate has a failed run.
        """
        by_rate: dict[float, list[float]] = {}
        for rate in tried:
            seeds = self.seeds if rate in measured else self.seeds[:1]
            values = [scores[rate, seed] for seed in seeds if (rate, seed) in scores]
            if values and not any(map(math.isnan, values)):
                by_rate[rate] = values
        complete = {rate: values for rate, values in by_rate.items() if rate in measured}
        means = {rate: math.fsum(values) / len(values) for rate, values in (complete or by_rate).items()}
        return best_rate(means, larger_is_better=True) if means else None


@dataclass(frozen=True)
class LrRange:
    """Learning rates as good as the best.

    Attributes:
        low: Smallest rate; the range may be wider if no smaller rate was tried.
        high: Largest rate; the range may be wider if no larger rate was tried.
        best: Best rate.
    """

    low: float
    high: float
    best: float

    @property
    def decades(self) -> float:
        """Width of the range, log10(high / low)."""
        return math.log10(self.high / self.low)


def best_rate(curve: Mapping[float, float], *, larger_is_better: bool) -> float:
    """Return the learning rate with the best finite mean; ties, up to rounding, go to the smallest rate.

    Args:
        curve: Learning rate -> mean score.
        larger_is_better: Whether a larger score is better.

    Raises:
        InputError: No learning rate has a finite mean.
    """
    rates = [rate for rate in sorted(curve) if math.isfinite(curve[rate])]
    if not rates:
        raise InputError(f"no learning rate of {sorted(curve)} has a finite mean")
    sign = 1 if larger_is_better else -1
    # `argmax` returns the first of equal means: of sorted rates, this is the smallest.
    return rates[int(np.argmax(merge_ties(np.array([sign * curve[rate] for rate in rates]))))]


def find_good_range(
    curve: Mapping[float, Estimate], best: float, *, larger_is_better: bool, tolerance: float
) -> LrRange:
    """Find the contiguous range of learning rates around the best whose means are nearly as good.

    A mean may be worse than the best mean by the tolerance, or by two standard errors of the best mean if this is more.

    Args:
        curve: Learning rate -> estimate of the score.
        best: The best rate, from the search.
        larger_is_better: Whether a larger score is better.
        tolerance: Allowed difference from the best mean in the metric's unit, such as 0.01 for an accuracy in [0, 1].

    Returns:
        The range around the best rate.

    Raises:
        InputError: The best rate has no finite mean, a rate is not positive, or the tolerance is negative.
    """
    rates, means = sorted(curve), {rate: estimate.mean for rate, estimate in curve.items()}
    if not math.isfinite(means.get(best, math.nan)):
        raise InputError(f"the best learning rate {best} has no finite mean, got rates {rates}")
    if not (rates[0] > 0 and tolerance >= 0):
        raise InputError(f"expected learning rates above 0 and a tolerance of 0 or more, got {rates}, {tolerance}")
    allowed_difference = max(tolerance, 2 * (curve[best].standard_error or 0.0))
    sign = 1 if larger_is_better else -1

    def is_good(rate: float) -> bool:
        # In floats, 0.91 - 0.90 > 0.01.
        rounding = ROUNDING * max(abs(means[rate]), abs(means[best]))
        return sign * (means[best] - means[rate]) <= allowed_difference + rounding

    index = rates.index(best)
    low = min(takewhile(is_good, reversed(rates[: index + 1])))
    high = max(takewhile(is_good, rates[index:]))
    return LrRange(low, high, best)


def _pairs(rates: Iterable[float], seeds: Iterable[int]) -> dict[tuple[float, int], None]:
    """Return the pairs of all rates and seeds, as keys of a dictionary, which keeps their order."""
    return dict.fromkeys(itertools.product(rates, list(seeds)))


def _rate_after(rate: float, steps: int, per_decade: int) -> float:
    """Return the rate after a number of steps along a geometric range, rounded to six digits."""
    # Rates identify trials: if a study file extends its range, the same rates must be computed from the new end.
    return float(f"{rate * 10 ** (steps / per_decade):.6g}")
