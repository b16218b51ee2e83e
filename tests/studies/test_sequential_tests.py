"""Tests at planned looks: one error rate over all of them, whatever the spread is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ailora.errors import InputError
from ailora.studies.sequential_tests import LookMoments, LookSchedule, normal_scores

TWENTY = LookSchedule.between(3, 20)


def test_looks_are_the_planned_ones_between_the_first_and_the_last() -> None:
    assert TWENTY.counts == (3, 5, 8, 12, 20)
    assert LookSchedule.between(4, 15).counts == (4, 5, 8, 12, 15)
    assert LookSchedule.between(2, 3).counts == (2, 3)
    for first, last in ((1, 5), (5, 5), (6, 5)):
        with pytest.raises(InputError, match=f"got {first} to {last}"):
            LookSchedule.between(first, last)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_a_single_look_is_students_paired_test(n: int) -> None:
    """P, interval and TOST; p-values are interpolated in a table, to 2e-5 of their size."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        ours, baseline = rng.standard_normal((2, n)) * 0.1
        moments = LookMoments.from_differences(ours - baseline, LookSchedule((n,)))
        assert moments.difference_p()[-1] == pytest.approx(stats.ttest_rel(ours, baseline).pvalue, rel=2e-5)
        low, high = moments.bounds(moments.schedule.two_sided.critical_value(0.05))
        interval = stats.ttest_rel(ours, baseline).confidence_interval(0.95)
        assert (low[-1], high[-1]) == pytest.approx((interval.low, interval.high), rel=1e-4, abs=1e-5)
        tost = max(
            stats.ttest_1samp(ours - baseline, -0.05, alternative="greater").pvalue,
            stats.ttest_1samp(ours - baseline, 0.05, alternative="less").pvalue,
        )
        assert moments.equivalence_p(0.05)[-1] == pytest.approx(tost, rel=2e-5)


@pytest.mark.parametrize("schedule", [TWENTY, LookSchedule.between(4, 15), LookSchedule.between(2, 3)])
@pytest.mark.parametrize("spread", [1e-6, 1e6])
def test_sequential_p_values_hold_their_level(schedule: LookSchedule, spread: float) -> None:
    """At any level, the share of null sequences that ever reject is the level, for any spread."""
    differences = np.random.default_rng(7).standard_normal((40_000, schedule.counts[-1])) * spread
    moments = LookMoments.from_differences(differences, schedule)
    p, one_sided = moments.difference_p()[:, -1], moments.statistics().max(axis=-1)
    for level in (0.001, 0.0125, 0.05, 0.5):
        for shares in (np.mean(p <= level), np.mean(schedule.one_sided.p_value(one_sided) <= level)):
            # Four standard errors of this simulation, and of the simulated overlap of the looks.
            assert abs(shares - level) < 4 * math.sqrt(level * (1 - level) / 40_000 + 0.01 / 200_000)


def test_the_error_is_spent_as_by_the_spending_function_of_o_brien_and_fleming() -> None:
    """Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983: 2 - 2 Phi(z / sqrt(n_k / n_K))."""
    p = LookMoments.from_differences(np.random.default_rng(8).standard_normal((100_000, 20)), TWENTY).difference_p()
    spent = np.mean(p <= 0.05, axis=0)
    expected = 2 * stats.norm.sf(stats.norm.isf(0.025) / TWENTY.weights)
    assert expected[1:] == pytest.approx([8.9e-5, 0.00194, 0.0114, 0.05], rel=0.01)
    # Four standard errors, and the distance between the two families of boundaries.
    assert np.all(np.abs(spent - expected) < 4 * np.sqrt(expected / 100_000) + 0.15 * expected)


def test_three_seeds_can_hardly_decide() -> None:
    """Differences of which a t-test would say p = 1e-4."""
    moments = LookMoments.from_differences(np.array([0.0100, 0.0102, 0.0101]), TWENTY)
    assert stats.ttest_1samp([0.0100, 0.0102, 0.0101], 0).pvalue < 2e-4
    assert moments.difference_p()[-1] > 0.1


@given(st.lists(st.floats(-1, 1), min_size=20, max_size=20))
def test_p_only_falls_and_agrees_with_the_interval(values: list[float]) -> None:
    moments = LookMoments.from_differences(np.array(values), TWENTY, rounding=1e-12)
    p = moments.difference_p()
    assert np.all(np.diff(p) <= 0)
    low, high = moments.bounds(TWENTY.two_sided.critical_value(0.05))
    for k in np.flatnonzero(~np.isnan(low)):
        assert low[k] < moments.means[k] < high[k]


def test_the_interval_excludes_zero_exactly_where_p_is_small() -> None:
    rng = np.random.default_rng(3)
    moments = LookMoments.from_differences(rng.normal(0.5, 1, (2000, 20)), TWENTY)
    low, high = moments.bounds(TWENTY.two_sided.critical_value(0.05))
    rejected, excluded = moments.difference_p() <= 0.05, (low > 0) | (high < 0)
    assert 0.3 < rejected[:, -1].mean() < 0.7
    # The interval starts anew where a later mean has left it.
    assert np.mean(rejected != excluded) < 0.002


def test_equal_differences_are_judged_by_their_signs() -> None:
    """They tell nothing of the spread over seeds: the resolution of the metric hides it."""
    for n in (2, 5, 8):
        moments = LookMoments.from_differences(np.full(n, 0.02), LookSchedule((n,)))
        assert moments.difference_p()[-1] == pytest.approx(stats.binomtest(n, n).pvalue, rel=2e-5)
        assert moments.equivalence_p(0.03)[-1] == pytest.approx(0.5**n, rel=2e-5)
        assert np.isnan(moments.bounds(1.96)).all()
    assert normal_scores(0.0, 0.0, 5) == 0


def test_rounding_is_no_spread() -> None:
    scores, baseline = np.array([0.85, 0.9, 0.95]), np.array([0.8, 0.85, 0.9])
    differences = scores - baseline
    assert len({*differences.tolist()}) > 1
    schedule = LookSchedule((3,))
    assert LookMoments.from_differences(differences, schedule, rounding=8 * 2.0**-52).sds[-1] == 0
    assert LookMoments.from_differences(differences, schedule).sds[-1] > 0


def test_a_failed_run_is_left_out() -> None:
    values = np.array([0.1, 0.2, math.nan, 0.3, 0.5])
    moments = LookMoments.from_differences(values, TWENTY)
    assert moments.counts.tolist() == [2, 4]
    rest = values[~np.isnan(values)]
    assert moments.means.tolist() == pytest.approx([rest[:2].mean(), rest.mean()])
    assert moments.sds.tolist() == pytest.approx([rest[:2].std(ddof=1), rest.std(ddof=1)])
    nothing = LookMoments.from_differences(np.full(3, math.nan), TWENTY)
    assert (nothing.counts[-1], nothing.difference_p()[-1]) == (0, pytest.approx(1))
