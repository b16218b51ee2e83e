"""Factor of the rate between two curves: recovered where it is known, refused where the curves do not tell it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from ailora.studies.rate_shift import RateShift, fit_rate_shift

#: Half a decade between rates, as `per_decade: 2` has them.
RATES = [1e-4 * 10 ** (step / 2) for step in range(6)]


def peak(rate: float, best: float, height: float = 0.9) -> float:
    """An accuracy with its best at a rate, which falls to chance on both sides."""
    return 0.5 + (height - 0.5) * math.exp(-2 * math.log10(rate / best) ** 2)


def fit(ours: dict[float, float], baseline: dict[float, float], **changes: float) -> RateShift:
    return fit_rate_shift({0: ours}, {0: baseline}, **{"tolerance": 0.01, **changes})


def curve(best: float, rates: list[float] = RATES, height: float = 0.9) -> dict[float, float]:
    return {rate: peak(rate, best, height) for rate in rates}


@given(steps=st.integers(-2, 2), best=st.floats(1e-3, 1e-2))
def test_a_shift_by_whole_steps_is_exact(steps: int, best: float) -> None:
    """The method at a rate is the baseline at `factor` times the rate: its best rate is smaller by the factor."""
    factor = 10 ** (steps / 2)
    # The rates are where the baseline's are, so that no interpolation errs.
    ours = {rate: peak(rate * factor, best) for rate in RATES}
    found = fit(ours, curve(best))
    assert found.factor == pytest.approx(factor)
    assert found.rms_after == pytest.approx(0, abs=1e-9)
    assert (found.low, found.high, found.seeds, found.reason) == (None, None, (0,), "")


@given(decades=st.floats(-0.7, 0.7), best=st.floats(1e-3, 1e-2))
def test_any_shift_is_found_to_a_tenth_of_a_step(decades: float, best: float) -> None:
    """Straight lines between rates half a decade apart move the best fit by less than 0.05 decades, 12 %."""
    found = fit({rate: peak(rate * 10**decades, best) for rate in RATES}, curve(best))
    assert found.factor is not None
    assert abs(math.log10(found.factor) - decades) <= 0.05
    assert found.rms_before is not None
    assert found.rms_after is not None
    assert found.rms_after <= found.rms_before + 1e-12


@given(decades=st.floats(-0.7, 0.7))
def test_exchanged_curves_have_the_inverse_factor(decades: float) -> None:
    ours, baseline = curve(3e-3 / 10**decades), curve(3e-3)
    there, back = fit(ours, baseline), fit(baseline, ours)
    assert there.factor is not None
    assert back.factor is not None
    assert there.factor * back.factor == pytest.approx(1)


@given(sign=st.sampled_from([-1, 1]), scale=st.floats(0.1, 100), offset=st.floats(-5, 5))
def test_the_unit_and_direction_of_the_metric_do_not_matter(sign: int, scale: float, offset: float) -> None:
    ours, baseline = curve(1e-3), curve(2e-3)
    turned = ({rate: offset + sign * scale * score for rate, score in c.items()} for c in (ours, baseline))
    assert fit(*turned, tolerance=0.01 * scale).factor == pytest.approx(fit(ours, baseline).factor)


def test_a_better_method_at_the_same_rates_is_no_shift() -> None:
    found = fit(curve(3e-3, height=0.93), curve(3e-3))
    assert found.factor == pytest.approx(1)
    # 0.03 at the peak, and less beside it, remain.
    assert found.rms_after == pytest.approx(found.rms_before)


@pytest.mark.parametrize("side", ["ours", "baseline"])
@given(noise=st.lists(st.floats(0, 0.01), min_size=6, max_size=6))
def test_a_flat_curve_has_no_shift(side: str, noise: list[float]) -> None:
    flat = dict(zip(RATES, noise, strict=True))
    found = fit(flat, curve(1e-3)) if side == "ours" else fit(curve(1e-3), flat)
    assert found.factor is None
    assert "curve is flat" in found.reason


@given(st.sets(st.sampled_from(RATES)), st.sets(st.sampled_from(RATES)))
def test_fewer_than_three_shared_rates_have_no_shift(ours: set[float], baseline: set[float]) -> None:
    assume(len(ours & baseline) < 3)
    found = fit(curve(1e-3, sorted(ours)), curve(1e-3, sorted(baseline)))
    assert found.factor is None
    assert found.seeds == ()
    assert f"{len(ours & baseline)} shared rates" in found.reason


def test_failed_rates_are_no_part_of_a_curve() -> None:
    diverged = {rate: math.nan if rate > 5e-4 else score for rate, score in curve(1e-3).items()}
    assert "2 shared rates" in fit(diverged, curve(1e-3)).reason


def test_a_shift_beyond_the_overlap_is_a_bound() -> None:
    """Of three rates in a decade only half a decade overlaps after a shift of one step, by the factor 3.2."""
    line = {rate: math.log10(rate) for rate in RATES[:3]}
    beyond = {rate: score + 0.7 for rate, score in line.items()}
    found, inverse = fit(beyond, line), fit(line, beyond)
    assert found.factor is inverse.factor is None
    assert found.reason.startswith("3.2 or more")
    assert inverse.reason.startswith("0.32 or less")


def test_equal_plateaus_on_opposite_sides_do_not_fit() -> None:
    """A run that has not learned yet and one that diverged score the same: their plateaus must not be laid together."""
    baseline = dict(zip(RATES, [0.6, 0.6, 0.6, 0.6, 0.8, 0.85], strict=True))
    ours = dict(zip(RATES, [0.8, 0.85, 0.6, 0.6, 0.6, 0.6], strict=True))
    assert fit(ours, baseline).factor is None


def test_the_interval_is_the_jackknifes_over_seeds() -> None:
    """Shifts by whole hundredths of a decade, on the search's own grid, are found exactly from straight lines."""
    decades = {0: 0.2, 1: 0.3, 2: 0.25}
    fine = [10 ** (-4 + step / 100) for step in range(301)]
    ours = {seed: {rate: peak(rate * 10**shift, 3e-3) for rate in fine} for seed, shift in decades.items()}
    found = fit_rate_shift(ours, dict.fromkeys(decades, curve(3e-3, fine)), tolerance=0.01)
    # Without a seed, the pooled fit is the mean of the other two: near its minimum the cost is quadratic.
    partial = np.array([(0.3 + 0.25) / 2, (0.2 + 0.25) / 2, (0.2 + 0.3) / 2])
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 / 3 * np.sum((partial - partial.mean()) ** 2))
    assert found.seeds == (0, 1, 2)
    assert found.factor is not None
    assert found.low is not None
    assert found.high is not None
    assert math.log10(found.factor) == pytest.approx(0.25, abs=0.01)
    # Two partial fits lie between grid points: each errs by 0.005, the error of the half width by t sqrt(2/3) as much.
    assert math.log10(found.high / found.low) / 2 == pytest.approx(half, abs=0.005 * 4.303)
    assert math.sqrt(found.low * found.high) == pytest.approx(found.factor)


def test_equal_seeds_have_an_interval_of_width_zero() -> None:
    seeds = (3, 5)
    found = fit_rate_shift(
        dict.fromkeys(seeds, curve(1e-3)), dict.fromkeys(seeds, curve(1e-3 * 10**0.5)), tolerance=0.01
    )
    assert found.factor == pytest.approx(10**0.5)
    assert found.low == pytest.approx(found.factor)
    assert found.high == pytest.approx(found.factor)


def test_seeds_with_few_rates_are_left_out() -> None:
    """Studies run the first seed at every rate, the others around the best one."""
    ours, baseline = curve(1e-3), curve(2e-3)
    few = dict.fromkeys(RATES[:2], 0.1)
    found = fit_rate_shift({0: ours, 1: few}, {0: baseline, 1: few, 2: baseline}, tolerance=0.01)
    assert found == fit(ours, baseline)
