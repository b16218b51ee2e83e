"""Curves over learning rates and over steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailora import InputError
from ailora.studies.lr_search import LrRange, best_rate, find_good_range
from ailora.studies.statistics import Estimate
from ailora.studies.time_to_loss import FirstReached, find_first_reached

EPS = float(np.finfo(float).eps)
SCORES = st.floats(-1e3, 1e3)


def test_the_best_rate_is_never_nan_and_rather_small() -> None:
    curve = {1e-2: math.nan, 3e-3: 0.9, 1e-3: 0.9, 1e-4: 0.2, 1e-1: math.inf}
    assert best_rate(curve, larger_is_better=True) == 1e-3
    assert best_rate(curve, larger_is_better=False) == 1e-4


@given(st.dictionaries(st.floats(1e-6, 1), SCORES, min_size=1), st.booleans())
def test_no_rate_is_better_than_the_best(curve: dict[float, float], larger_is_better: bool) -> None:
    best = best_rate(curve, larger_is_better=larger_is_better)
    assert curve[best] == pytest.approx((max if larger_is_better else min)(curve.values()), rel=1e-11, abs=0)
    assert best == min(rate for rate in curve if curve[rate] == curve[best])


def test_means_that_differ_by_rounding_are_a_tie() -> None:
    """The smaller rate has as many right answers: 744 of 800."""
    curve = {1e-3: (373 / 400 + 371 / 400) / 2, 1e-2: 372 / 400}
    assert curve[1e-3] < curve[1e-2]
    assert best_rate(curve, larger_is_better=True) == 1e-3
    assert best_rate({rate: -mean for rate, mean in curve.items()}, larger_is_better=False) == 1e-3
    # One answer more is no tie.
    assert best_rate({1e-3: 372 / 400, 1e-2: 373 / 400}, larger_is_better=True) == 1e-2


@pytest.mark.parametrize("curve", [{}, {1e-3: math.nan}])
def test_a_curve_without_scores_has_no_best_rate(curve: dict[float, float]) -> None:
    with pytest.raises(InputError, match="has a finite mean"):
        best_rate(curve, larger_is_better=True)


def flat(mean: float, sd: float | None = None, n: int = 1) -> Estimate:
    return Estimate(mean, sd, n, None, None)


CURVE = {1e-5: 0.91, 1e-4: 0.5, 3e-4: 0.90, 1e-3: 0.905, 3e-3: 0.91, 1e-2: 0.902, 1e-1: math.nan, 1.0: 0.905}


def test_a_good_range_by_hand() -> None:
    """0.90 is one point below 0.91 (though not in floats); 0.5 and NaN end it, and what is good beyond is not in it."""
    assert 0.91 - 0.90 > 0.01
    curve = {rate: flat(mean) for rate, mean in CURVE.items() if rate > 1e-5}
    found = find_good_range(curve, 3e-3, larger_is_better=True, tolerance=0.01)
    assert found == LrRange(3e-4, 1e-2, 3e-3)
    turned = {rate: flat(-each.mean) for rate, each in curve.items()}
    assert find_good_range(turned, 3e-3, larger_is_better=False, tolerance=0.01) == found
    assert find_good_range(curve, 3e-3, larger_is_better=True, tolerance=0.0) == LrRange(3e-3, 3e-3, 3e-3)


def test_a_good_range_is_around_the_chosen_rate_and_holds_better_ones() -> None:
    curve = {rate: flat(mean) for rate, mean in CURVE.items()}
    assert find_good_range(curve, 1e-5, larger_is_better=True, tolerance=0.01) == LrRange(1e-5, 1e-5, 1e-5)
    assert find_good_range(curve, 3e-4, larger_is_better=True, tolerance=0.0) == LrRange(3e-4, 1e-2, 3e-4)


def test_two_standard_errors_of_the_best_widen_a_good_range() -> None:
    """2 * 0.05 / sqrt(4) = 0.05; the errors of other rates do not count."""
    curve = {1e-3: flat(0.85, 0.0, 4), 1e-2: flat(0.89, 0.05, 4), 1e-1: flat(0.83, 9.0, 4)}
    assert find_good_range(curve, 1e-2, larger_is_better=True, tolerance=0.01) == LrRange(1e-3, 1e-2, 1e-2)
    assert find_good_range(curve, 1e-2, larger_is_better=True, tolerance=0.1).high == 1e-1


@given(st.dictionaries(st.floats(1e-6, 1), SCORES, min_size=1, max_size=8), st.booleans(), st.floats(0, 10))
def test_a_good_range_is_around_its_best_and_grows_with_the_tolerance(
    means: dict[float, float], larger_is_better: bool, tolerance: float
) -> None:
    curve = {rate: flat(mean) for rate, mean in means.items()}
    best = best_rate(means, larger_is_better=larger_is_better)
    found, wider = (
        find_good_range(curve, best, larger_is_better=larger_is_better, tolerance=each)
        for each in (tolerance, 2 * tolerance)
    )
    assert wider.low <= found.low <= found.best <= found.high <= wider.high
    assert found.best == wider.best == best
    assert {found.low, found.high} <= means.keys()


@pytest.mark.parametrize(("rate", "tolerance"), [(0.0, 0.01), (-1.0, 0.01), (1.0, -0.01), (1.0, math.nan)])
def test_a_good_range_refuses(rate: float, tolerance: float) -> None:
    with pytest.raises(InputError, match="learning rates above 0 and a tolerance of 0 or more"):
        find_good_range({rate: flat(1.0)}, rate, larger_is_better=True, tolerance=tolerance)


@pytest.mark.parametrize("best", [1e-3, 1e-1])
def test_a_good_range_needs_a_score_at_the_best_rate(best: float) -> None:
    with pytest.raises(InputError, match="has no finite mean"):
        find_good_range({1e-2: flat(1.0), 1e-1: flat(math.nan)}, best, larger_is_better=True, tolerance=0.01)


def test_steps_to_reach_a_loss() -> None:
    history = [
        {"step": step, "loss": loss} for step, loss in ((10, math.nan), (20, 2.0), (30, 1.0), (40, 1.5), (50, 0.5))
    ]
    assert find_first_reached(history, 1.0) == FirstReached(30, 50)
    assert find_first_reached(history[::-1], 1.0) == FirstReached(30, 50)
    assert find_first_reached(history, 0.4) == FirstReached(None, 50)
    assert find_first_reached(history[:1], math.inf) == FirstReached(None, 10)
    with pytest.raises(InputError, match="without evaluations"):
        find_first_reached([], 1.0)
