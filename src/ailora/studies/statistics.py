"""Statistics of scores: estimates over seeds, paired differences, adjusted p-values and ranks.

Each seed is a run of a method on a task at a learning rate. Scores are in the metric's unit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from ailora.errors import InputError

K = TypeVar("K", bound=Hashable)

#: Relative difference up to which two means count as equal; rounding alone causes smaller differences.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, with its uncertainty.

    All fields except `n` are NaN if a score is not finite.

    Attributes:
        mean: Mean score.
        sd: Standard deviation over seeds, divisor n - 1; None for a single seed.
        n: Number of seeds.
        low: Lower end of the two-sided t-interval; None for a single seed.
        high: Upper end of the interval.
    """

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean, sd / sqrt(n); None for a single seed."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


def estimate(values: Iterable[float], confidence: float = 0.95) -> Estimate:
    """Estimate the mean score over seeds, with Student's interval mean ± t(n - 1) sd / sqrt(n).

    Equal scores have an interval of width 0.

    Source: Student, "The probable error of a mean", Biometrika 6 (1), 1908.

    Args:
        values: Score of each seed.
        confidence: Confidence of the interval, in (0, 1).

    Returns:
        The estimate. A score that is not finite, as in a diverged run, makes all fields except `n` NaN.

    Raises:
        InputError: There are no values, or the confidence is outside (0, 1).
    """
    # A bootstrap interval would be too narrow for few seeds. Means of resamples of 3 seeds stay between the smallest
    # and the largest score. The interval between these scores covers the mean of a symmetric distribution in
    # 1 - 2 / 2^3 = 75 % of cases, and percentiles of all 27 resamples cover 67 % for normal scores. The t-interval
    # covers 95 % for normal scores at any n.
    scores = [float(value) for value in values]
    if not scores or not 0 < confidence < 1:
        raise InputError(f"expected at least one score and a confidence in (0, 1), got {scores}, {confidence}")
    n, finite = len(scores), all(map(math.isfinite, scores))
    # `statistics` computes with fractions and rounds once: the mean of equal scores is exactly their value, and their
    # sd is 0. scipy's t-tests sum floats: for equal differences they compute a tiny sd, and warn.
    mean = statistics.mean(scores) if finite else math.nan
    if n < 2:
        return Estimate(mean, None, n, None, None)
    sd = statistics.stdev(scores) if finite else math.nan
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(mean, sd, n, mean - half_width, mean + half_width)


@dataclass(frozen=True)
class Difference:
    """Scores of a method minus scores of a baseline, paired by seed.

    Attributes:
        estimate: Mean difference over the shared seeds.
        seeds: Shared seeds, ascending.
    """

    estimate: Estimate
    seeds: tuple[int, ...]


def paired_difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compute the score difference of two methods over their shared seeds.

    Pairing removes seed effects common to both methods: the data order and the initial head.

    Args:
        scores: Seed -> score of the method.
        baseline: Seed -> score of the baseline.

    Returns:
        The difference, method minus baseline.

    Raises:
        InputError: The methods share no seed.
    """
    seeds = tuple(sorted(scores.keys() & baseline.keys()))
    if not seeds:
        raise InputError(f"no seed is in both {sorted(scores)} and {sorted(baseline)}")
    return Difference(estimate(scores[seed] - baseline[seed] for seed in seeds), seeds)


@dataclass(frozen=True)
class Interval:
    """A value with the 95 % interval around it."""

    mean: float
    low: float
    high: float


def bootstrap_difference(
    predictions: np.ndarray,
    baseline: np.ndarray,
    labels: np.ndarray,
    *,
    metric: Callable[[np.ndarray, np.ndarray], float],
    rng_seed: int = 0,
    n_resamples: int = 1000,
) -> Interval:
    """Bootstrap the difference of two methods' scores over examples and seeds.

    A score is the mean of the metric over seeds. Each resample draws seeds and examples with replacement, the same for
    both methods. The interval is from the 2.5th to the 97.5th percentile. With few seeds it is too narrow;
    verdicts therefore use t-tests over seeds.

    Source: A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2), 2007.

    Args:
        predictions: Predictions of the method, (seeds, examples).
        baseline: Predictions of the baseline for the same seeds and examples, (seeds, examples).
        labels: True labels, (examples,).
        metric: (labels, predictions), both (examples,), -> score.
        rng_seed: Seed of the draws.
        n_resamples: Number of resamples.

    Returns:
        The difference of the scores without resampling, and the percentiles of the resampled differences.

    Raises:
        InputError: The shapes do not fit together, or there is no seed, example or resample.
    """
    if not (predictions.ndim == 2 and predictions.shape == baseline.shape and predictions.shape[1:] == labels.shape):
        shapes = f"{predictions.shape}, {baseline.shape}, {labels.shape}"
        raise InputError(f"expected predictions and baseline (seeds, examples), labels (examples,), got {shapes}")
    if not predictions.size or n_resamples < 1:
        raise InputError(
            f"expected at least one seed, one example and one resample, got {predictions.shape}, {n_resamples}"
        )
    # `scipy.stats.bootstrap` resamples along a single axis only.
    n_seeds, n_examples = predictions.shape
    rng = np.random.default_rng(rng_seed)

    def difference(counts: np.ndarray, rows: np.ndarray) -> float:
        """Compute the difference in a resample.

        Args:
            counts: How often each seed was drawn, (seeds,).
            rows: Indices of the drawn examples, (examples,).
        """
        truth = labels[rows]
        # A seed drawn twice is scored once, since calls of the metric take nearly all the time.
        by_seed = (
            counts[seed] * (metric(truth, predictions[seed, rows]) - metric(truth, baseline[seed, rows]))
            for seed in np.flatnonzero(counts)
        )
        return float(sum(by_seed)) / n_seeds

    uniform = np.full(n_seeds, 1 / n_seeds)
    differences = [
        difference(rng.multinomial(n_seeds, uniform), rng.integers(n_examples, size=n_examples))
        for _ in range(n_resamples)
    ]
    low, high = np.quantile(differences, (0.025, 0.975))
    return Interval(difference(np.ones(n_seeds, int), np.arange(n_examples)), float(low), float(high))


def holm(p_values: Mapping[K, float], *, n_pending: int = 0) -> dict[K, float]:
    """Adjust the p-values of a family by Holm's procedure, see `holm_adjusted`.

    Args:
        p_values: Comparison -> p-value.
        n_pending: Number of comparisons in the family without a p-value yet; each counts with a p-value of 1.

    Returns:
        Comparison -> adjusted p-value.

    Raises:
        InputError: A p-value is outside [0, 1].
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong:
        raise InputError(f"p-values must be in [0, 1]; got {wrong}")
    adjusted = holm_adjusted(np.array([*p_values.values(), *[1.0] * n_pending]))
    return dict(zip(p_values, adjusted.tolist(), strict=False))


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Adjust the p-values of families by Holm's procedure.

    The k-th smallest of m p-values is multiplied by m - k + 1. The products are then made monotonic, and limited to 1.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979.

    Args:
        p_values: P-values, a family in the last axis, (..., comparisons).

    Returns:
        Adjusted p-values of the same shape.
    """
    # statsmodels adjusts a single family per call, and runs Python's garbage collector in each call: with torch loaded,
    # this takes a second.
    order = np.argsort(p_values, axis=-1)
    products = np.take_along_axis(p_values, order, axis=-1) * np.arange(p_values.shape[-1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(products, axis=-1), 1)
    return np.take_along_axis(adjusted, np.argsort(order, axis=-1), axis=-1)


def merge_ties(scores: np.ndarray) -> np.ndarray:
    """Give scores that differ only by rounding the same value.

    In floats, (373 / 400 + 371 / 400) / 2 is less than 372 / 400.

    Args:
        scores: Scores, compared along the last axis, (..., scores); may be NaN or infinite.

    Returns:
        Scores of the same shape; scores of a tie have its smallest value.
    """
    order = np.argsort(scores, axis=-1)
    ascending = np.take_along_axis(scores, order, axis=-1)
    # Whether a score is tied with its predecessor. NaN stands for the predecessor of the first score.
    with np.errstate(invalid="ignore"):  # differences of infinite scores
        is_tied = np.diff(ascending, axis=-1, prepend=np.nan) <= ROUNDING * np.abs(ascending)
    is_tied &= np.isfinite(ascending)
    # For each score, the index of the first score of its tie.
    first = np.maximum.accumulate(np.where(is_tied, 0, np.arange(scores.shape[-1])), axis=-1)
    merged = np.take_along_axis(ascending, first, axis=-1)
    return np.take_along_axis(merged, np.argsort(order, axis=-1), axis=-1)


def average_ranks(scores: pd.DataFrame, *, larger_is_better: Mapping[K, bool]) -> pd.Series:
    """Compute the average rank of each method over tasks.

    The best method of a task has rank 1. Scores that are equal up to rounding share the mean of their ranks, and
    missing scores (NaN) the mean of the last ranks.

    Source: J. Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.

    Args:
        scores: Scores (tasks, methods), with tasks as index and methods as columns.
        larger_is_better: Task -> whether larger scores are better.

    Returns:
        Average rank of each method (methods,), in the order of the columns.

    Raises:
        InputError: There is no task, or `larger_is_better` lacks a task.
    """
    unknown = [task for task in scores.index if task not in larger_is_better]
    if unknown or scores.empty:
        raise InputError(f"expected tasks and methods, and larger_is_better for each task; missing for {unknown}")
    signs = [1 if larger_is_better[task] else -1 for task in scores.index]
    merged = pd.DataFrame(merge_ties(scores.mul(signs, axis=0).to_numpy(float)), scores.index, scores.columns)
    return merged.rank(axis=1, method="average", ascending=False, na_option="bottom").mean()
