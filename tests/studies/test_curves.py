"""Curves over learning rates and over steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailora import InputError
from ailora.studies.lr_sweep import GoodRange, Reached, good_range, peak, steps_to_reach
from ailora.studies.statistics import Estimate

EPS = float(np.finfo(float).eps)
SCORES = st.floats(-1e3, 1e3)


def test_a_peak_is_never_nan_and_rather_small() -> None:
    curve = {1e-2: math.nan, 3e-3: 0.9, 1e-3: 0.9, 1e-4: 0.2, 1e-1: math.inf}
    assert peak(curve, larger_is_better=True) == 1e-3
    assert peak(curve, larger_is_better=False) == 1e-4


@given(st.dictionaries(st.floats(1e-6, 1), SCORES, min_size=1), st.booleans())
def test_no_rate_is_better_than_the_peak(curve: dict[float, float], larger_is_better: bool) -> None:
    best = peak(curve, larger_is_better=larger_is_better)
    assert curve[best] == (max if larger_is_better else min)(curve.values())
    assert best == min(rate for rate in curve if curve[rate] == curve[best])


@pytest.mark.parametrize("curve", [{}, {1e-3: math.nan}])
def test_a_curve_without_scores_has_no_peak(curve: dict[float, float]) -> None:
    with pytest.raises(InputError, match="has a finite mean"):
        peak(curve, larger_is_better=True)


def flat(mean: float, sd: float | None = None, n: int = 1) -> Estimate:
    return Estimate(mean, sd, n, None, None)


CURVE = {1e-5: 0.91, 1e-4: 0.5, 3e-4: 0.90, 1e-3: 0.905, 3e-3: 0.91, 1e-2: 0.902, 1e-1: math.nan, 1.0: 0.905}


def test_a_good_range_by_hand() -> None:
    """0.90 is one point below 0.91 (though not in floats); 0.5 and NaN end it, and what is good beyond is not in it."""
    assert 0.91 - 0.90 > 0.01
    curve = {rate: flat(mean) for rate, mean in CURVE.items() if rate > 1e-5}
    found = good_range(curve, larger_is_better=True, point=0.01)
    assert found == GoodRange(3e-4, 1e-2, 3e-3, math.log10(1e-2 / 3e-4))
    turned = {rate: flat(-each.mean) for rate, each in curve.items()}
    assert good_range(turned, larger_is_better=False, point=0.01) == found
    assert good_range(curve, larger_is_better=True, point=0.0) == GoodRange(3e-3, 3e-3, 3e-3, 0.0)


def test_the_smaller_of_two_peaks_has_the_range() -> None:
    curve = {rate: flat(mean) for rate, mean in CURVE.items()}
    assert good_range(curve, larger_is_better=True, point=0.01) == GoodRange(1e-5, 1e-5, 1e-5, 0.0)


def test_two_standard_errors_of_the_peak_widen_a_good_range() -> None:
    """2 * 0.05 / sqrt(4) = 0.05; the errors of other rates do not count."""
    curve = {1e-3: flat(0.85, 0.0, 4), 1e-2: flat(0.89, 0.05, 4), 1e-1: flat(0.83, 9.0, 4)}
    assert good_range(curve, larger_is_better=True, point=0.01) == GoodRange(1e-3, 1e-2, 1e-2, 1.0)
    assert good_range(curve, larger_is_better=True, point=0.1).high == 1e-1


@given(st.dictionaries(st.floats(1e-6, 1), SCORES, min_size=1, max_size=8), st.booleans(), st.floats(0, 10))
def test_a_good_range_is_around_its_peak_and_grows_with_the_point(
    means: dict[float, float], larger_is_better: bool, point: float
) -> None:
    curve = {rate: flat(mean) for rate, mean in means.items()}
    found, wider = (good_range(curve, larger_is_better=larger_is_better, point=each) for each in (point, 2 * point))
    assert wider.low <= found.low <= found.peak <= found.high <= wider.high
    assert found.peak == wider.peak == peak(means, larger_is_better=larger_is_better)
    assert {found.low, found.high} <= means.keys()


@pytest.mark.parametrize(("rate", "point"), [(0.0, 0.01), (-1.0, 0.01), (1.0, -0.01), (1.0, math.nan)])
def test_a_good_range_refuses(rate: float, point: float) -> None:
    with pytest.raises(InputError, match="learning rates above 0 and a point of 0 or more"):
        good_range({rate: flat(1.0)}, larger_is_better=True, point=point)


def test_steps_to_reach_a_loss() -> None:
    history = [
        {"step": step, "loss": loss} for step, loss in ((10, math.nan), (20, 2.0), (30, 1.0), (40, 1.5), (50, 0.5))
    ]
    assert steps_to_reach(history, 1.0) == Reached(30, 50)
    assert steps_to_reach(history[::-1], 1.0) == Reached(30, 50)
    assert steps_to_reach(history, 0.4) == Reached(None, 50)
    assert steps_to_reach(history[:1], math.inf) == Reached(None, 10)
    with pytest.raises(InputError, match="without evaluations"):
        steps_to_reach([], 1.0)
