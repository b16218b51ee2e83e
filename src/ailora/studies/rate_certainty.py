"""Certainty of the chosen learning rates, as shares of bootstrap resamples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ailora.studies.bootstrap import score_resamples
from ailora.studies.method_results import MethodResult
from ailora.studies.statistics import merge_ties
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import TrialResult

#: The standard error of a share p, sqrt(p (1 - p) / n), is at most 1.1 %.
_N_SEED_RESAMPLES = 2000
#: Smaller than `_N_SEED_RESAMPLES`, because correlation metrics need a call for each run and resample. The standard
#: error of a share is at most 2.2 %.
_N_EXAMPLE_RESAMPLES = 500


class Resampled(StrEnum):
    """Units drawn with replacement by a resample."""

    SEEDS_AND_EXAMPLES = "seeds and validation examples"
    SEEDS = "seeds"
    EXAMPLES = "validation examples"


@dataclass(frozen=True)
class RateCertainty:
    """Certainty of a method's best rate.

    Attributes:
        best: The chosen rate.
        shares: Rate, ascending -> share of the resamples with their best score at this rate; empty if unknown. Rates
            without runs of all selection seeds are left out.
        resampled: Resampled units. None if the certainty is unknown: there is a single selection seed, and no
            predictions are read.
    """

    best: float
    shares: dict[float, float]
    resampled: Resampled | None

    @property
    def share_of_best(self) -> float | None:
        """Share of the resamples in favour of the chosen rate; None if unknown."""
        return self.shares.get(self.best)

    @property
    def ranked_shares(self) -> list[tuple[float, float]]:
        """Rates with their shares, the most frequent choice first."""
        return sorted(self.shares.items(), key=lambda item: -item[1])

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        return {
            "shares": {f"{rate:g}": share for rate, share in self.shares.items()},
            "resampled": self.resampled and self.resampled.value,
        }


def measure_rate_certainty(
    result: MethodResult, design: StudyDesign, *, read_predictions: bool
) -> RateCertainty | None:
    """Measure how often each rate of a method has the best resampled validation score.

    A resample draws selection seeds with replacement. It also draws validation examples if predictions are read, and
    those of all runs are stored. All rates share the draws of a resample.

    Args:
        result: Results of the method.
        design: Design of the study.
        read_predictions: Whether to resample examples, from stored predictions.

    Returns:
        The certainty; None while the best rate is unknown, or if fewer than two rates have a finite score for each
        selection seed.
    """
    seeds, metric = design.selection_seeds, design.metric(result.condition)
    runs = {
        rate: [by_seed[seed] for seed in seeds]
        for rate, by_seed in result.runs.items()
        if by_seed.keys() >= {*seeds} and all(_is_scored(by_seed[seed], metric) for seed in seeds)
    }
    best = result.search.best
    if best not in runs or len(runs) < 2:
        return None
    uniform = np.full(len(seeds), 1 / len(seeds))
    # Number of draws of each seed, (resamples, seeds).
    seed_counts = np.random.default_rng(0).multinomial(len(seeds), uniform, size=_N_SEED_RESAMPLES)
    scores = None
    if read_predictions:
        all_runs = [run for rate_runs in runs.values() for run in rate_runs]
        scores = score_resamples(all_runs, "validation", metric, n_resamples=_N_EXAMPLE_RESAMPLES)
    # Scores are None, too, if stored predictions are missing or not comparable.
    if scores is not None:
        means = _mean_over_seeds(scores.reshape(-1, len(runs), len(seeds)), seed_counts[:_N_EXAMPLE_RESAMPLES])
        resampled = Resampled.SEEDS_AND_EXAMPLES if len(seeds) > 1 else Resampled.EXAMPLES
    elif len(seeds) > 1:
        stored = np.array([[run.metrics["validation"][metric] for run in rate_runs] for rate_runs in runs.values()])
        means, resampled = _mean_over_seeds(stored[None], seed_counts), Resampled.SEEDS
    else:
        return RateCertainty(best, {}, None)
    sign = 1 if design.larger_is_better(result.condition) else -1
    return RateCertainty(best, _choice_shares(sign * means, [*runs]), resampled)


def _is_scored(run: TrialResult, metric: str) -> bool:
    return math.isfinite(run.metrics["validation"].get(metric, math.nan))


def _mean_over_seeds(scores: np.ndarray, seed_counts: np.ndarray) -> np.ndarray:
    """Compute the mean scores of resampled seeds.

    Args:
        scores: (resamples or 1, rates, seeds).
        seed_counts: Number of draws of each seed, (resamples, seeds).

    Returns:
        Means, (resamples, rates).
    """
    return (scores * seed_counts[:, None, :]).sum(axis=-1) / seed_counts.shape[1]


def _choice_shares(means: np.ndarray, rates: Sequence[float]) -> dict[float, float]:
    """Compute the share of the resamples in which each rate has the largest mean; ties go to the smaller rate.

    Args:
        means: (resamples, rates).
        rates: The rates, ascending.
    """
    # `argmax` returns the first of equal means: ties are broken as in the search.
    chosen = np.argmax(merge_ties(means), axis=1)
    return {rate: float(np.mean(chosen == index)) for index, rate in enumerate(rates)}
