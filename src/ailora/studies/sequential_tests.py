"""Group sequential t-tests: a study is judged at planned numbers of seeds, with a single error rate over all looks.

A boundary of O'Brien and Fleming rejects if sqrt(n_k / n_K) z_k is beyond a constant. Here n_k is the number of seeds
at look k, and n_K at the last look. The normal score z_k has the p-value of the t-statistic of the first n_k seeds.
Under the null hypothesis, the sequence of t-statistics is independent of the spread of the scores. The constant
therefore depends on the looks only. Early looks use almost none of the error rate. A single look is the ordinary
t-test.

Source: P. C. O'Brien, T. R. Fleming, "A multiple testing procedure for clinical trials", Biometrics 35, 1979;
C. Jennison, B. W. Turnbull, "Group Sequential Methods with Applications to Clinical Trials", 2000.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ailora.errors import InputError

#: Numbers of seeds at which studies are judged. The ratio of neighbours is about 1.6: more looks cost power.
PLANNED_LOOKS = (3, 5, 8, 12, 20, 32, 50)
#: Number of simulated studies. The overlap of the looks (see `_compute_null_distributions`), below 0.01 at p = 0.05,
#: then has a standard error of 0.0002.
_N_SIMULATED = 200_000
#: Values of the statistic at which p-values are tabulated; p at the last is 1e-19.
_GRID = np.linspace(-4, 9, 1301)


@dataclass(frozen=True)
class LookSchedule:
    """Planned looks of a study.

    Attributes:
        counts: Number of seeds at each look, ascending.
    """

    counts: tuple[int, ...]

    @classmethod
    def between(cls, first: int, last: int) -> LookSchedule:
        """Build the schedule with a first and a last look, and those of `PLANNED_LOOKS` between them.

        Raises:
            InputError: The first look has fewer than 2 seeds, or as many as the last.
        """
        if not 2 <= first < last:
            raise InputError(f"expected 2 or more seeds at the first look, and more at the last, got {first} to {last}")
        return cls((first, *(n for n in PLANNED_LOOKS if first < n < last), last))

    @property
    def weights(self) -> np.ndarray:
        """sqrt(n_k / n_K) of each look, (looks,)."""
        return np.sqrt(np.array(self.counts) / self.counts[-1])

    @property
    def two_sided(self) -> NullDistribution:
        """Null distribution of the largest absolute statistic over all looks."""
        return _compute_null_distributions(self)[0]

    @property
    def one_sided(self) -> NullDistribution:
        """Null distribution of the largest statistic over all looks."""
        return _compute_null_distributions(self)[1]


@dataclass(frozen=True)
class NullDistribution:
    """Distribution of the largest statistic over the looks under the null hypothesis.

    Attributes:
        log_p: Log of the probability that the statistic is at or above each value of `_GRID`, descending.
    """

    log_p: np.ndarray

    def p_value(self, largest: ArrayLike) -> np.ndarray:
        """Compute the sequential p-value: the smallest error rate at which a look so far rejects.

        The p-value is valid at every look, since boundaries widen as the error rate falls.

        Source: W. Liu, K. M. Anderson, "On adaptive extensions of group sequential trials for clinical investigations",
        JASA 103, 2008.

        Args:
            largest: Largest statistic over the looks so far.

        Returns:
            P-values of the same shape.
        """
        return np.exp(np.interp(np.asarray(largest, float), _GRID, self.log_p))

    def critical_value(self, level: float) -> float:
        """Compute the constant of the boundaries at an error rate."""
        # `np.interp` needs ascending abscissas, and log p descends.
        return float(np.interp(-math.log(level), -self.log_p, _GRID))


@functools.lru_cache
def _compute_null_distributions(schedule: LookSchedule) -> tuple[NullDistribution, NullDistribution]:
    """Compute the two-sided and the one-sided null distribution.

    The probability that any look is beyond a value is the sum of the exact probabilities of all looks, minus their
    overlap. The overlap is the expected number of looks beyond the value, not counting the most extreme look. Only the
    overlap is simulated.
    """
    # In the tail and for a single look the overlap vanishes, so these p-values are exact.
    weights = schedule.weights
    marginal = special.ndtr(-_GRID[:, None] / weights).sum(axis=1)
    # The absolute statistics of all looks are above any negative value.
    two_sided = np.where(_GRID > 0, 2 * marginal, len(weights))
    # A single look has no overlap, so the value of its statistic does not matter.
    statistics = _simulate_statistics(schedule) if len(weights) > 1 else np.zeros((1, 1))
    return _without_overlap(two_sided, np.abs(statistics)), _without_overlap(marginal, statistics)


def _without_overlap(expected: np.ndarray, statistics: np.ndarray) -> NullDistribution:
    """Subtract the overlap from the expected number of looks beyond each value of `_GRID`."""
    # Statistics of all looks but the most extreme of each simulation.
    others = np.sort(np.sort(statistics, axis=1)[:, :-1].ravel())
    overlap = (others.size - np.searchsorted(others, _GRID)) / len(statistics)
    # Clipping keeps the logarithm finite. The running minimum removes bumps of the simulation: p must not rise.
    return NullDistribution(np.log(np.minimum.accumulate(np.clip(expected - overlap, 1e-300, 1))))


def _simulate_statistics(schedule: LookSchedule) -> np.ndarray:
    """Simulate statistics under the null hypothesis, (simulations, looks)."""
    # Only sums and sums of squares are needed. Over the seeds between two looks, the sum is normal, and the sum of
    # squares around the mean is chi-squared: both are drawn without drawing single seeds.
    rng = np.random.default_rng(0)
    total, squares, n_before = np.zeros(_N_SIMULATED), np.zeros(_N_SIMULATED), 0
    looks = []
    for n in schedule.counts:
        n_new = n - n_before
        new_sum = rng.standard_normal(_N_SIMULATED) * math.sqrt(n_new)
        around_mean = rng.chisquare(n_new - 1, _N_SIMULATED) if n_new > 1 else 0.0
        total, squares, n_before = total + new_sum, squares + new_sum**2 / n_new + around_mean, n
        sd = np.sqrt((squares - total**2 / n) / (n - 1))
        looks.append(normal_scores(total / n, sd, n))
    return np.stack(looks, axis=1) * schedule.weights


def normal_scores(means: ArrayLike, sds: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """Convert the t-statistics of means to normal scores with the same one-sided p-values.

    If all differences are equal, the metric's resolution hides their spread, and the standard deviation is 0. Their
    signs are then tested instead, with p = 2^-n.

    Args:
        means: Means minus the mean of the null hypothesis.
        sds: Standard deviations, divisor n - 1.
        counts: Numbers of seeds.

    Returns:
        Normal scores of the common shape, positive for positive means; 0 below two seeds.
    """
    means, sds, counts = np.broadcast_arrays(means, sds, counts)
    equal = ~(sds > 0)
    t = np.abs(means) * np.sqrt(counts) / np.where(equal, 1, sds)
    p = np.where(equal, 0.5**counts, special.stdtr(np.maximum(counts - 1, 1), -t))
    return -np.sign(means) * special.ndtri(np.where(counts < 2, 0.5, p))


@dataclass(frozen=True)
class LookMoments:
    """Moments of paired differences at the looks so far.

    Attributes:
        schedule: All planned looks.
        means: Means of the differences, (..., looks so far).
        sds: Standard deviations, divisor n - 1, of the same shape; 0 for equal differences.
        counts: Numbers of differences, of the same shape; smaller than planned if runs failed.
    """

    schedule: LookSchedule
    means: np.ndarray
    sds: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_differences(cls, differences: np.ndarray, schedule: LookSchedule, rounding: float = 0.0) -> LookMoments:
        """Compute the moments at each look from the differences of its seeds.

        Args:
            differences: Differences in the order of the seeds, up to the latest look, (..., seeds); NaN for failed
                runs.
            schedule: All planned looks.
            rounding: Rounding error of a difference; a standard deviation up to this error counts as 0.

        Returns:
            The moments at the looks so far.
        """
        last_indices = np.array([n - 1 for n in schedule.counts if n <= differences.shape[-1]])
        exists = ~np.isnan(differences)
        values = np.where(exists, differences, 0.0)
        counts = np.cumsum(exists, axis=-1)[..., last_indices]
        # Moments are taken around the first difference: around 0, they would cancel for a mean far from 0.
        shift = np.take_along_axis(values, np.argmax(exists, axis=-1)[..., None], axis=-1)
        centred = np.where(exists, values - shift, 0.0)
        first, second = (np.cumsum(centred**power, axis=-1)[..., last_indices] for power in (1, 2))
        n = np.maximum(counts, 1)
        sds = np.sqrt(np.maximum(second - first**2 / n, 0) / np.maximum(counts - 1, 1))
        return cls(schedule, shift + first / n, np.where(sds > rounding, sds, 0.0), counts)

    def statistics(self, null: float = 0.0) -> np.ndarray:
        """Compute the statistics of all looks under the null hypothesis of a mean difference `null`."""
        return self._weights * normal_scores(self.means - null, self.sds, self.counts)

    def difference_p(self) -> np.ndarray:
        """Compute the sequential p-value for a difference at each look."""
        return self.schedule.two_sided.p_value(np.maximum.accumulate(np.abs(self.statistics()), axis=-1))

    def equivalence_p(self, margin: float) -> np.ndarray:
        """Compute the sequential p-value for equivalence at each look: the larger p of two one-sided tests (TOST).

        Source: D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", Journal of
        Pharmacokinetics and Biopharmaceutics 15, 1987.
        """
        # The smaller statistic has the larger p-value.
        statistics = np.minimum(
            np.maximum.accumulate(self.statistics(-margin), axis=-1),
            np.maximum.accumulate(-self.statistics(margin), axis=-1),
        )
        return self.schedule.one_sided.p_value(statistics)

    def bounds(self, critical_value: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute the sequential interval at each look: the mean differences rejected by no look so far.

        If the mean at a look is outside the intervals of earlier looks, the interval at this look ignores the earlier
        looks.

        Args:
            critical_value: Constant of the boundaries, two-sided for an interval, and one-sided for a bound.

        Returns:
            Lower and upper ends, (..., looks so far); NaN below two seeds and for equal differences.
        """
        p = np.broadcast_to(special.ndtr(-critical_value / self._weights), self.means.shape)
        quantile = -special.stdtrit(np.maximum(self.counts - 1, 1), p)
        usable = (self.counts > 1) & (self.sds > 0)
        half = np.where(usable, quantile * self.sds / np.sqrt(np.maximum(self.counts, 1)), math.nan)
        low, high = self.means - half, self.means + half
        # `fmax` and `fmin` ignore NaN: looks without an interval exclude no value.
        all_low, all_high = np.fmax.accumulate(low, axis=-1), np.fmin.accumulate(high, axis=-1)
        inside = usable & (all_low < self.means) & (self.means < all_high)
        return np.where(inside, all_low, low), np.where(inside, all_high, high)

    @property
    def _weights(self) -> np.ndarray:
        return self.schedule.weights[: self.means.shape[-1]]
