"""Verdicts on comparisons with a baseline: better, worse, equivalent or undecided.

The tests for differences share a familywise error rate over all comparisons, and so do the tests for equivalence. A
study is judged at looks, which are planned numbers of seeds.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from scipy import special

from ailora.studies.sequential_tests import LookMoments, LookSchedule
from ailora.studies.statistics import Estimate, holm

K = TypeVar("K", bound=Hashable)

#: Error rate of each of the two families of tests: for differences, and for equivalence.
ALPHA = 0.05
_POWER = 0.8
#: Confidence of the interval for the standard deviation. Its ends give the smallest and the largest number of missing
#: seeds, which are the seeds to run beyond the present ones.
_SPREAD_CONFIDENCE = 0.8
_MAX_MISSING_SEEDS = 10_000


class StudyVerdict(StrEnum):
    """Verdict on a method against a baseline. `UNDECIDED` means too few seeds, not equality."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class PairedScores:
    """Scores of a method minus scores of the baseline, up to the latest look.

    Attributes:
        seeds: Seeds up to the latest look.
        differences: Difference of each seed, (seeds,); NaN for a failed run.
        n_failed: Number of seeds without a score of the method.
        n_baseline_failed: Number of seeds without a score of the baseline.
        rounding: Bound on the rounding error of a difference, in the metric's unit.
        margin: Largest difference of equivalent methods; None if equivalence is not judged.
        larger_is_better: Whether larger scores are better.
    """

    seeds: tuple[int, ...]
    differences: np.ndarray
    n_failed: int
    n_baseline_failed: int
    rounding: float
    margin: float | None
    larger_is_better: bool

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[int, float],
        baseline: Mapping[int, float],
        seeds: Sequence[int],
        *,
        margin: float | None,
        larger_is_better: bool,
    ) -> PairedScores:
        """Pair the finite scores of a method and the baseline by seed."""
        # Shape (2, seeds): the scores of the method and those of the baseline.
        values = np.array([[by_seed.get(seed, math.nan) for seed in seeds] for by_seed in (scores, baseline)], float)
        n_failed, n_baseline_failed = (~np.isfinite(values)).sum(axis=1).tolist()
        is_pair = np.isfinite(values).all(axis=0)
        differences = np.subtract(values[0], values[1], out=np.full(len(seeds), math.nan), where=is_pair)
        largest_score = float(np.abs(values[:, is_pair]).max(initial=0.0))
        # 8 units in the last place bound the rounding of two scores and of their difference.
        rounding = 8 * float(np.finfo(float).eps) * largest_score
        return cls(tuple(seeds), differences, n_failed, n_baseline_failed, rounding, margin, larger_is_better)


@dataclass(frozen=True)
class Judgement:
    """A verdict with its evidence.

    Attributes:
        verdict: The verdict; better and worse take precedence over equivalent. Better needs a score of the method at
            every seed of the look, worse needs one of the baseline, and equivalent needs both: a run may fail at just
            the seeds where it would score worst.
        equivalent: Whether the difference is shown to be within the margin; None if equivalence is not judged.
        seeds: Seeds with a score of both the method and the baseline.
        look: Number of seeds at the latest look, including seeds with a failed run.
        n_failed: Number of these seeds at which the method failed.
        n_baseline_failed: Number of these seeds at which the baseline failed.
        difference: Mean difference with its sequential interval; without an interval below two seeds, or if all
            differences are equal.
        p_value: Sequential p-value for a difference; None below two seeds.
        adjusted_p: `p_value` adjusted by Holm's procedure.
        equivalence_p: Sequential p-value for equivalence; None below two seeds or without a margin.
        adjusted_equivalence_p: `equivalence_p` adjusted by Holm's procedure.
        margin: Largest difference of equivalent methods, in the metric's unit; None if equivalence is not judged.
        smallest_margin: Smallest margin at which equivalence is shown; None without an interval or with failed seeds.
        missing_seeds: Smallest and largest number of seeds beyond the present ones that would show equivalence with a
            power of 80 %, if the methods are in truth equal. The numbers belong to the lower and the upper end of an
            80 % interval for the standard deviation. None if the verdict is decided, the numbers are unknown, or seeds
            have failed; the largest number is None if it is above 10,000.
    """

    verdict: StudyVerdict
    equivalent: bool | None
    seeds: tuple[int, ...]
    look: int
    n_failed: int
    n_baseline_failed: int
    difference: Estimate
    p_value: float | None
    adjusted_p: float | None
    equivalence_p: float | None
    adjusted_equivalence_p: float | None
    margin: float | None
    smallest_margin: float | None
    missing_seeds: tuple[int, int | None] | None

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is better, worse or equivalent."""
        return self.verdict is not StudyVerdict.UNDECIDED

    @property
    def is_final(self) -> bool:
        """Whether the comparison needs no further look: the verdict is decided, or cannot be.

        No verdict is possible if both the method and the baseline have failed seeds.
        """
        return self.is_decided or (self.n_failed > 0 and self.n_baseline_failed > 0)

    def __str__(self) -> str:
        """Return the verdict in words, such as `better and equivalent`."""
        return f"{self.verdict} and equivalent" if self.equivalent and self.verdict in _DIFFERENT else self.verdict

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        return {
            "verdict": self.verdict.value,
            "equivalent": self.equivalent,
            "seeds": list(self.seeds),
            "failed_seeds": {"method": self.n_failed, "baseline": self.n_baseline_failed},
            "p": self.p_value,
            "adjusted_p": self.adjusted_p,
            "equivalence_p": self.equivalence_p,
            "adjusted_equivalence_p": self.adjusted_equivalence_p,
            "margin": self.margin,
            "smallest_margin": self.smallest_margin,
            "missing_seeds": self.missing_seeds and list(self.missing_seeds),
        }


_DIFFERENT = (StudyVerdict.BETTER, StudyVerdict.WORSE)


def judge(pairs: Mapping[K, PairedScores], schedule: LookSchedule, *, n_pending: int = 0) -> dict[K, Judgement]:
    """Judge the comparisons of a study, each at its latest look.

    Tests for differences and tests for equivalence are two families. Holm's procedure adjusts the sequential p-values
    within each family.

    Args:
        pairs: Comparison -> paired scores up to its latest look.
        schedule: Planned looks of the study.
        n_pending: Number of comparisons that have not reached their first look.

    Returns:
        Comparison -> judgement.
    """
    moments = {
        key: LookMoments.from_differences(pair.differences, schedule, pair.rounding) for key, pair in pairs.items()
    }
    moments = {key: m for key, m in moments.items() if m.counts[-1] >= 2}
    p_values = {key: float(m.difference_p()[-1]) for key, m in moments.items()}
    equivalence_p_values = {
        key: float(m.equivalence_p(margin)[-1])
        for key, m in moments.items()
        if (margin := pairs[key].margin) is not None
    }
    adjusted_p, adjusted_equivalence_p = (
        holm(family, n_pending=n_pending) for family in (p_values, equivalence_p_values)
    )
    equivalent_keys = {key for key, p in adjusted_equivalence_p.items() if p < ALPHA}
    n_equivalence_tests = len(equivalence_p_values) + n_pending
    return {
        key: _judge(
            pair,
            moments.get(key),
            _Evidence(
                p_value=p_values.get(key),
                adjusted_p=adjusted_p.get(key),
                equivalence_p=equivalence_p_values.get(key),
                adjusted_equivalence_p=adjusted_equivalence_p.get(key),
                # Holm's procedure divides the error rate by the number of hypotheses that are not rejected yet. The
                # other comparisons whose equivalence is shown are rejected hypotheses, so they raise this level.
                level=ALPHA / max(n_equivalence_tests - len(equivalent_keys - {key}), 1),
            ),
        )
        for key, pair in pairs.items()
    }


@dataclass(frozen=True)
class _Evidence:
    """P-values of a comparison, and the level of its equivalence test by Holm's procedure."""

    p_value: float | None
    adjusted_p: float | None
    equivalence_p: float | None
    adjusted_equivalence_p: float | None
    level: float


def _judge(pair: PairedScores, moments: LookMoments | None, evidence: _Evidence) -> Judgement:
    """Judge a comparison by its p-values.

    Args:
        pair: Paired scores of the comparison.
        moments: Moments of the differences at each look; None below two seeds.
        evidence: P-values of the comparison, and the level of its equivalence test.
    """
    has_failures = pair.n_failed + pair.n_baseline_failed > 0
    is_different = evidence.adjusted_p is not None and evidence.adjusted_p < ALPHA
    equivalent = None
    if pair.margin is not None:
        equivalent = evidence.adjusted_equivalence_p is not None and evidence.adjusted_equivalence_p < ALPHA
        # Equivalence needs all scores of the method and of the baseline.
        equivalent = equivalent and not has_failures
    verdict = StudyVerdict.EQUIVALENT if equivalent else StudyVerdict.UNDECIDED
    if is_different and moments is not None:
        look_statistics = moments.statistics()
        # The look with the smallest p shows the difference. The mean may have changed its sign at later looks.
        strongest = look_statistics[np.argmax(np.abs(look_statistics))]
        is_better = bool(strongest > 0) is pair.larger_is_better
        verdict = StudyVerdict.BETTER if is_better else StudyVerdict.WORSE
        n_failed_of_favoured = pair.n_failed if is_better else pair.n_baseline_failed
        if n_failed_of_favoured:
            verdict = StudyVerdict.UNDECIDED
    undecided = verdict is StudyVerdict.UNDECIDED
    return Judgement(
        verdict=verdict,
        equivalent=equivalent,
        seeds=tuple(seed for seed, d in zip(pair.seeds, pair.differences, strict=True) if not math.isnan(d)),
        look=len(pair.seeds),
        n_failed=pair.n_failed,
        n_baseline_failed=pair.n_baseline_failed,
        difference=_estimate(pair, moments),
        p_value=evidence.p_value,
        adjusted_p=evidence.adjusted_p,
        equivalence_p=evidence.equivalence_p,
        adjusted_equivalence_p=evidence.adjusted_equivalence_p,
        margin=pair.margin,
        smallest_margin=_smallest_margin(moments, evidence.level) if moments and not has_failures else None,
        missing_seeds=(
            _missing_seeds(moments, pair.margin, evidence.level)
            if moments and pair.margin and undecided and not has_failures
            else None
        ),
    )


def _estimate(pair: PairedScores, moments: LookMoments | None) -> Estimate:
    if moments is None:
        values = pair.differences[~np.isnan(pair.differences)]
        return Estimate(float(values[0]) if values.size else math.nan, None, values.size, None, None)
    low, high = (float(end[-1]) for end in moments.bounds(moments.schedule.two_sided.critical_value(ALPHA)))
    ends = (None, None) if math.isnan(low) else (low, high)
    return Estimate(float(moments.means[-1]), float(moments.sds[-1]), int(moments.counts[-1]), *ends)


def _smallest_margin(moments: LookMoments, level: float) -> float | None:
    """Compute the smallest margin at which both one-sided tests reject at a level."""
    low, high = moments.bounds(moments.schedule.one_sided.critical_value(level))
    margin = max(-float(low[-1]), float(high[-1]))
    return None if math.isnan(margin) else margin


def _missing_seeds(moments: LookMoments, margin: float, level: float) -> tuple[int, int | None] | None:
    """Compute how many more seeds would show equivalence, for both ends of the interval of the standard deviation."""
    n, sd = int(moments.counts[-1]), float(moments.sds[-1])
    if sd == 0:
        return None
    # A study with more seeds would have a later last look, and a boundary of its own. The boundary of the present study
    # approximates it: for last looks at 5 to 50 seeds, the constants of both boundaries differ by less than 2 %.
    nominal_level = float(special.ndtr(-moments.schedule.one_sided.critical_value(level)))
    # Ends of the interval of the standard deviation, from chi-squared quantiles.
    tails = (1 - _SPREAD_CONFIDENCE) / 2, (1 + _SPREAD_CONFIDENCE) / 2
    small, large = (sd * math.sqrt((n - 1) / special.chdtri(n - 1, tail)) for tail in tails)
    few, many = (equivalence_seeds(spread, margin, nominal_level) - n for spread in (small, large))
    return max(few, 1), max(many, 1) if many <= _MAX_MISSING_SEEDS else None


def equivalence_seeds(sd: float, margin: float, level: float) -> int:
    """Compute the number of seeds at which two one-sided tests (TOST) show the equivalence of equal methods.

    The power is 80 %.

    Source: S.-C. Chow, J. Shao, H. Wang, "Sample Size Calculations in Clinical Research", 2008, section 3.1.

    Args:
        sd: Standard deviation of the paired differences.
        margin: Largest difference of equivalent methods.
        level: Error rate of each one-sided test.

    Returns:
        The number of seeds, at most 10^9 - 1.
    """

    def suffices(n: int) -> bool:
        quantile_sum = special.stdtrit(n - 1, 1 - level) + special.stdtrit(n - 1, (1 + _POWER) / 2)
        return bool(margin * math.sqrt(n) >= quantile_sum * sd)

    numbers = range(2, 10**9)
    return numbers[bisect.bisect_left(numbers, True, key=suffices)] if suffices(numbers[-1]) else numbers[-1]
