"""Statistics of scores: estimates over seeds, paired differences, adjusted p-values and ranks.

A seed is one run of a method on a task at a learning rate. Scores are in the metric's own unit.
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


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, with its uncertainty.

    Attributes:
        mean: mean; NaN, as the fields below, if a score is not finite.
        sd: standard deviation over seeds, divisor n - 1; None for one seed.
        n: number of seeds.
        low: lower end of the two-sided t-interval; None for one seed.
        high: its upper end.
    """

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean, sd / sqrt(n); None for one seed."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


def estimate(values: Iterable[float], confidence: float = 0.95) -> Estimate:
    """Estimate the mean of one score per seed, with Student's interval: mean ± t(n - 1) sd / sqrt(n).

    A bootstrap of so few seeds is too narrow: of 3, no resample lies outside their smallest and largest score, between
    which the mean of a symmetric distribution lies in 1 - 2 / 2^3 = 75 % of cases, and the linearly interpolated
    percentiles of the 27 resamples of normal scores cover 67 %. The t-interval covers 95 % of normal scores at any n.
    Equal scores have an interval of width 0. A score of a diverged run, which is not finite, makes all fields NaN.

    Source: Student, "The probable error of a mean", Biometrika 6 (1), 1908.

    Raises:
        InputError: There are no values, or the confidence is outside (0, 1).
    """
    scores = [float(value) for value in values]
    if not scores or not 0 < confidence < 1:
        raise InputError(f"expected at least one score and a confidence in (0, 1), got {scores}, {confidence}")
    n, finite = len(scores), all(map(math.isfinite, scores))
    # `statistics` computes these in rationals and rounds once: equal scores have their own value and sd 0. scipy's
    # t-tests sum floats instead: of equal differences they make a tiny sd, and warn of it.
    mean = statistics.mean(scores) if finite else math.nan
    if n < 2:
        return Estimate(mean, None, n, None, None)
    sd = statistics.stdev(scores) if finite else math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(mean, sd, n, mean - half, mean + half)


@dataclass(frozen=True)
class Difference:
    """Scores of a method minus those of a baseline, paired by seed.

    Attributes:
        estimate: mean of the differences, a difference for each seed.
        seeds: shared seeds, ascending.
    """

    estimate: Estimate
    seeds: tuple[int, ...]


def paired_difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compute the difference of two methods over their shared seeds.

    Pairing removes the effect of a seed on both (order of data, head); other seeds are left out.

    Args:
        scores: seed -> score of the method.
        baseline: seed -> score of the baseline.

    Returns:
        The differences, score minus score of the baseline.

    Raises:
        InputError: No seed is in both.
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

    A score is the metric's mean over seeds. Each resample draws seeds and, apart from them, examples, both with
    replacement and the same for both methods; the interval is from the 2.5 % to the 97.5 % percentile. With few seeds
    their part of the interval is too narrow (see `estimate`): verdicts follow from t-tests over seeds.
    The time goes into up to 2 x seeds calls of the metric per resample (a seed drawn twice is measured once): a metric
    in plain numpy takes a thirtieth of the time of scikit-learn's, most of which checks inputs.
    `scipy.stats.bootstrap` resamples along one axis only.

    Source: A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2), 2007.

    Args:
        predictions: predictions of the method, (seeds, examples).
        baseline: predictions of the baseline for the same seeds and examples, (seeds, examples).
        labels: true labels, (examples,).
        metric: (labels, predictions), both (examples,), -> score.
        rng_seed: seed of the draws.
        n_resamples: number of draws.

    Returns:
        The difference of the scores without resampling, and the percentiles of the resampled differences.

    Raises:
        InputError: The shapes do not fit together, or there is no seed, example or resample.
    """
    if not (predictions.ndim == 2 and predictions.shape == baseline.shape and predictions.shape[1:] == labels.shape):
        shapes = f"{predictions.shape}, {baseline.shape}, {labels.shape}"
        raise InputError(f"expected predictions and baseline (seeds, examples), labels (examples,), got {shapes}")
    if not predictions.size or n_resamples < 1:
        raise InputError(f"expected a seed, an example, a resample, got {predictions.shape}, {n_resamples}")
    seeds, examples = predictions.shape
    rng = np.random.default_rng(rng_seed)

    def difference(counts: np.ndarray, rows: np.ndarray) -> float:
        """Compute the difference for counts of each seed (seeds,) and indices of examples (examples,)."""
        truth = labels[rows]
        by_seed = (
            counts[seed] * (metric(truth, predictions[seed, rows]) - metric(truth, baseline[seed, rows]))
            for seed in np.flatnonzero(counts)
        )
        return float(sum(by_seed)) / seeds

    even = np.full(seeds, 1 / seeds)
    differences = [
        difference(rng.multinomial(seeds, even), rng.integers(examples, size=examples)) for _ in range(n_resamples)
    ]
    low, high = np.quantile(differences, (0.025, 0.975))
    return Interval(difference(np.ones(seeds, int), np.arange(examples)), float(low), float(high))


def holm(p_values: Mapping[K, float], *, n_pending: int = 0) -> dict[K, float]:
    """Adjust p-values for the size of their family by Holm's procedure.

    See `holm_adjusted`.

    Args:
        p_values: comparison -> p.
        n_pending: number of comparisons of the family whose p is not known yet; they count as 1.

    Returns:
        Comparison -> adjusted p.

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

    In ascending order, each is multiplied by the number of p-values from it on; the products are made monotonic, and
    limited to 1. statsmodels' implementation takes a family at a time and collects garbage, which takes a second beside
    torch.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979.

    Args:
        p_values: p-values, a family in the last axis, (..., comparisons).

    Returns:
        Adjusted p-values of the same shape.
    """
    order = np.argsort(p_values, axis=-1)
    products = np.take_along_axis(p_values, order, axis=-1) * np.arange(p_values.shape[-1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(products, axis=-1), 1)
    return np.take_along_axis(adjusted, np.argsort(order, axis=-1), axis=-1)


def average_ranks(scores: pd.DataFrame, *, larger_is_better: Mapping[K, bool]) -> pd.Series:
    """Compute the mean over tasks of each method's rank.

    Rank 1 is the best of a task; equal scores share the mean of their ranks. A missing score (NaN) ranks last in its
    task, and several share the mean of the last ranks.

    Source: J. Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.

    Args:
        scores: (tasks, methods), named by its index and columns.
        larger_is_better: task -> whether a larger score is.

    Returns:
        (methods,), in the order of the columns.

    Raises:
        InputError: There is no task, or `larger_is_better` lacks a task.
    """
    unknown = [task for task in scores.index if task not in larger_is_better]
    if unknown or scores.empty:
        raise InputError(f"expected tasks and methods, and what is better in each task; missing for {unknown}")
    signs = [1 if larger_is_better[task] else -1 for task in scores.index]
    return scores.mul(signs, axis=0).rank(axis=1, method="average", ascending=False, na_option="bottom").mean()
