"""Learning rate factor between the score curves of a baseline and a method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

#: Number of rates that two curves need in common.
MIN_SHARED_RATES = 3
#: A step of the fit is a factor of 1.023: a fiftieth of half a decade, the usual distance between tried rates.
_STEPS_PER_DECADE = 100
#: Smallest overlap of two curves, as a share of the decades of the shorter curve.
_MIN_OVERLAP = 0.5
#: Smallest range of scores within the overlap, as a share of each curve's range; plateaus fit at any shift.
_MIN_SCORE_RANGE = 0.25
#: Bound on the rounding of logarithms and scores.
_ROUNDING = 1e-9

#: Learning rate -> score of a run.
Curve = Mapping[float, float]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RateShift:
    """Factor `f` of the rate with the best fit of `method(rate) = baseline(f * rate)`.

    Attributes:
        factor: The factor; None if the curves do not identify a factor.
        low: Lower end of the factor's 95 % interval over seeds; None for a single seed, or if the curves no longer
            identify a factor when a seed is left out.
        high: Upper end of the interval.
        seeds: Seeds with curves of both the method and the baseline, ascending.
        rms_before: Root mean square difference of the curves at equal rates, in the metric's unit; None without a
            factor, or if the curves hardly overlap without a shift.
        rms_after: Root mean square difference of the curves after the shift.
        reason: Reason for an unknown factor; empty for a known factor.
    """

    factor: float | None
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()
    rms_before: float | None = None
    rms_after: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        return {
            "factor": self.factor,
            "interval": None if self.low is None else [self.low, self.high],
            "seeds": list(self.seeds),
            "rms_before": self.rms_before,
            "rms_after": self.rms_after,
            "reason": self.reason,
        }


def fit_rate_shift(method: Mapping[int, Curve], baseline: Mapping[int, Curve], *, tolerance: float) -> RateShift:
    """Fit the rate factor that turns the baseline's curve into the method's curve.

    A curve interpolates its scores linearly over `x`, log10 of the rate. The shift `d`, in decades, minimizes the mean
    square of the differences `method(x) - baseline(x + d)` over all seeds, at the tried rates within the overlap. The
    overlap must cover half of the decades of the shorter curve, and a quarter of each curve's range of scores. The
    interval over seeds is the jackknife interval `d ± t(n - 1) se`.

    Source: B. Efron and C. Stein, "The jackknife estimate of variance", Annals of Statistics 9 (3), 1981.

    Args:
        method: Seed -> curve of the method.
        baseline: Seed -> curve of the baseline. Seeds with fewer than `MIN_SHARED_RATES` shared rates are left out.
        tolerance: Range of scores, in the metric's unit, up to which a curve is flat.

    Returns:
        The factor, or the reason for an unknown factor.
    """
    method, baseline = _finite(method), _finite(baseline)
    n_shared = {seed: len(method[seed].keys() & baseline[seed].keys()) for seed in method.keys() & baseline.keys()}
    seeds = tuple(sorted(seed for seed, count in n_shared.items() if count >= MIN_SHARED_RATES))
    if not seeds:
        max_shared = max(n_shared.values(), default=0)
        return RateShift(None, reason=f"{max_shared} shared rates with one seed, of {MIN_SHARED_RATES} needed")
    for name, curves in (("method", method), ("baseline", baseline)):
        if np.mean([np.ptp([*curves[seed].values()]) for seed in seeds]) <= tolerance + _ROUNDING:
            return RateShift(None, seeds=seeds, reason=f"the {name}'s curve is flat, within {tolerance:g}")
    fit = _ShiftFit.from_curves([(method[seed], baseline[seed]) for seed in seeds])
    all_seeds = np.ones(len(seeds), bool)
    best = fit.best_index(all_seeds)
    if best is None:
        return RateShift(None, seeds=seeds, reason="the curves hardly overlap at any shift")
    if fit.is_limit(best):
        bound = 10 ** fit.shifts[best]
        side = "or more" if bound > 1 else "or less"
        return RateShift(None, seeds=seeds, reason=f"{bound:.2g} {side}: beyond it the curves hardly overlap")
    low, high = fit.interval(best)
    before, after = (fit.rms(all_seeds, index) for index in (fit.unshifted, best))
    return RateShift(float(10 ** fit.shifts[best]), low, high, seeds, before, after)


@dataclass(frozen=True)
class _ShiftFit:
    """Squared differences of the curves of every seed, at every shift.

    Attributes:
        shifts: Decades, ascending, (shifts,).
        squares: Sums of squared differences, infinite without enough overlap, (seeds, shifts).
        counts: Number of differences in each sum, (seeds, shifts).
    """

    shifts: _Floats
    squares: _Floats
    counts: _Floats

    @classmethod
    def from_curves(cls, pairs: list[tuple[Curve, Curve]]) -> _ShiftFit:
        """Compute the squared differences of each seed's pair of curves, the method's and the baseline's."""
        rates = [rate for pair in pairs for curve in pair for rate in curve]
        # There is an extra step at each end, because `is_limit` reads both neighbours of a shift.
        max_steps = math.ceil(math.log10(max(rates) / min(rates)) * _STEPS_PER_DECADE) + 1
        shifts = np.arange(-max_steps, max_steps + 1) / _STEPS_PER_DECADE
        by_seed = [_squared_differences(_points(method), _points(base), shifts) for method, base in pairs]
        return cls(shifts, np.array([squares for squares, _ in by_seed]), np.array([counts for _, counts in by_seed]))

    @property
    def unshifted(self) -> int:
        """Index of the shift 0."""
        return len(self.shifts) // 2

    def mean_squares(self, seeds: NDArray[np.bool_]) -> _Floats:
        """Compute the mean square of the selected seeds, infinite without enough overlap, (shifts,)."""
        return self.squares[seeds].sum(0) / np.maximum(self.counts[seeds].sum(0), 1)

    def best_index(self, seeds: NDArray[np.bool_]) -> int | None:
        """Return the index of the best shift for the selected seeds, or None if no shift has enough overlap.

        Of several equally good shifts, the smallest in absolute value counts.
        """
        means = self.mean_squares(seeds)
        min_mean = means.min()
        if not math.isfinite(min_mean):
            return None
        best_indices = np.flatnonzero(means <= min_mean + _ROUNDING**2)
        return int(best_indices[np.argmin(np.abs(self.shifts[best_indices]))])

    def is_limit(self, index: int) -> bool:
        """Return whether a neighbouring shift leaves too little overlap, so that a larger shift might fit better."""
        return not np.isfinite(self.squares[:, [index - 1, index + 1]]).all()

    def rms(self, seeds: NDArray[np.bool_], index: int) -> float | None:
        """Compute the root mean square of the differences at a shift; None without enough overlap."""
        mean = float(self.mean_squares(seeds)[index])
        return math.sqrt(mean) if math.isfinite(mean) else None

    def interval(self, best: int) -> tuple[float, float] | tuple[None, None]:
        """Compute the 95 % jackknife interval of the factor over seeds.

        Args:
            best: Index of the best shift for all seeds.

        Returns:
            Ends of the interval; both None for a single seed, or if the curves without one of the seeds do not identify
            a factor.
        """
        n = len(self.squares)
        if n < 2:
            return None, None
        leave_one_out = [self.best_index(np.arange(n) != left_out) for left_out in range(n)]
        # A fit at the limit of the overlap cannot move further, and would make the interval too narrow.
        if any(index is None or self.is_limit(index) for index in leave_one_out):
            return None, None
        shifts = self.shifts[[index for index in leave_one_out if index is not None]]
        standard_error = math.sqrt((n - 1) / n * float(np.sum((shifts - shifts.mean()) ** 2)))
        half_width = float(stats.t.ppf(0.975, n - 1)) * standard_error
        center = float(self.shifts[best])
        return 10 ** (center - half_width), 10 ** (center + half_width)


def _finite(curves: Mapping[int, Curve]) -> dict[int, dict[float, float]]:
    return {seed: {rate: y for rate, y in curve.items() if math.isfinite(y)} for seed, curve in curves.items()}


def _points(curve: Curve) -> tuple[_Floats, _Floats]:
    """Return log10 of the rates, ascending, and the scores there, both (rates,)."""
    rates = sorted(curve)
    return np.log10(rates), np.array([curve[rate] for rate in rates])


def _squared_differences(
    method: tuple[_Floats, _Floats], baseline: tuple[_Floats, _Floats], shifts: _Floats
) -> tuple[_Floats, _Floats]:
    """Sum the squares of `method(x) - baseline(x + shift)` over the rates of both curves, and count the rates.

    Returns:
        Sums, infinite where the curves do not overlap enough, and numbers of rates, both (shifts,).
    """
    x, base_x = method[0], baseline[0]
    # Ends of the overlap as log10 of the method's rate.
    low, high = np.maximum(x[0], base_x[0] - shifts), np.minimum(x[-1], base_x[-1] - shifts)
    squares, counts, covered = _sums_at_rates(method, baseline, shifts, (low, high))
    base_squares, base_counts, base_covered = _sums_at_rates(baseline, method, -shifts, (low + shifts, high + shifts))
    is_wide = high - low >= _MIN_OVERLAP * min(np.ptp(x), np.ptp(base_x)) - _ROUNDING
    enough = is_wide & covered & base_covered
    return np.where(enough, squares + base_squares, np.inf), counts + base_counts


def _sums_at_rates(
    curve: tuple[_Floats, _Floats], other: tuple[_Floats, _Floats], shifts: _Floats, overlap: tuple[_Floats, _Floats]
) -> tuple[_Floats, _Floats, NDArray[np.bool_]]:
    """Sum the squares of `curve(x) - other(x + shift)` over the rates of the curve within the overlap.

    Args:
        curve: Points of the curve, from `_points`.
        other: Points of the other curve.
        shifts: Decades, (shifts,).
        overlap: Ends of the overlap at each shift as log10 of the curve's rate, both (shifts,).

    Returns:
        Sums, numbers of rates, and whether the overlap has enough of the curve's range of scores, each (shifts,).
    """
    x, scores = curve
    ends = np.stack(overlap)
    # `inside` and `differences` have the shape (shifts, rates), `ends` and `at_ends` have (2, shifts).
    inside = (x >= ends[0][:, None] - _ROUNDING) & (x <= ends[1][:, None] + _ROUNDING)
    differences = np.where(inside, scores - np.interp(x + shifts[:, None], *other), 0.0)
    at_ends = np.interp(ends, x, scores)
    top = np.maximum(np.where(inside, scores, -np.inf).max(axis=1), at_ends.max(axis=0))
    bottom = np.minimum(np.where(inside, scores, np.inf).min(axis=1), at_ends.min(axis=0))
    enough = top - bottom >= _MIN_SCORE_RANGE * np.ptp(scores) - _ROUNDING
    return np.sum(differences**2, axis=1), inside.sum(axis=1).astype(float), enough
