"""Statistics of studies, against scipy, hand-written procedures and simulated scores."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from ailora import InputError
from ailora.studies.statistics import (
    Estimate,
    Interval,
    average_ranks,
    bootstrap_difference,
    estimate,
    holm,
    holm_adjusted,
    paired_difference,
)

EPS = float(np.finfo(float).eps)
#: Squares of smaller ones are not normal numbers; numpy loses them.
SCORES = st.floats(-1e3, 1e3).filter(lambda score: score == 0 or abs(score) > 1e-100)


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(labels == predictions))


def ends(found: Estimate) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def mean_prediction(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(predictions))


@given(st.lists(SCORES, min_size=2, max_size=10), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_an_estimate_is_numpys_mean_and_scipys_interval(values: list[float], confidence: float) -> None:
    found = estimate(values, confidence)
    # numpy rounds in each of its sums: n roundings of terms up to the largest value. t(1, 0.99) is 64.
    tolerance = 2 * len(values) * EPS * max(map(abs, values))
    assert found.mean == pytest.approx(np.mean(values), rel=0, abs=tolerance)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=4 * len(values) * EPS, abs=2 * tolerance)
    assume(found.sd)
    assert found.sd is not None
    interval = stats.t.interval(confidence, len(values) - 1, loc=found.mean, scale=found.sd / math.sqrt(len(values)))
    assert (found.low, found.high) == pytest.approx(
        interval, rel=8 * EPS, abs=8 * EPS * (abs(found.mean) + 64 * found.sd)
    )


@given(st.lists(SCORES, min_size=2, max_size=10), st.integers(-8, 8), st.booleans())
def test_an_estimate_scales_with_its_values(values: list[float], power: int, negative: bool) -> None:
    """Exactly by powers of two, which round nothing; a negative factor swaps the ends."""
    factor = math.ldexp(-1.0 if negative else 1.0, power)
    plain, scaled = estimate(values), estimate(factor * value for value in values)
    assert plain.sd is not None
    assert (scaled.mean, scaled.sd) == (factor * plain.mean, abs(factor) * plain.sd)
    assert ends(scaled) == tuple(sorted(factor * end for end in ends(plain)))


@given(st.lists(SCORES, min_size=2, max_size=10), SCORES)
def test_an_estimate_moves_with_its_values(values: list[float], shift: float) -> None:
    """Each sum is off by eps / 2 of itself, the ends by t(1) = 12.7 times that and by their own roundings."""
    plain, moved = estimate(values), estimate(value + shift for value in values)
    sums = max(map(abs, values)) + abs(shift)
    tolerance = EPS * (16 * sums + 4 * max(map(abs, ends(plain))))
    assert moved.mean == pytest.approx(plain.mean + shift, rel=0, abs=2 * EPS * sums)
    assert moved.sd == pytest.approx(plain.sd, rel=2 * EPS, abs=2 * EPS * sums)
    assert ends(moved) == pytest.approx([end + shift for end in ends(plain)], rel=0, abs=tolerance)


@given(SCORES, st.integers(2, 10))
def test_equal_scores_are_their_own_mean(value: float, n: int) -> None:
    assert estimate([value] * n) == Estimate(value, 0, n, value, value)


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.25]) == Estimate(0.25, None, 1, None, None)
    assert estimate([0.25]).standard_error is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_leaves_no_number(bad: float) -> None:
    found = estimate([0.5, bad, math.inf])
    assert found.n == 3
    assert all(math.isnan(value) for value in (found.mean, found.sd, found.low, found.high) if value is not None)
    assert math.isnan(estimate([bad]).mean)


@pytest.mark.parametrize(("values", "confidence"), [([], 0.95), ([1.0], 95), ([1.0], 0), ([1.0], math.nan)])
def test_an_estimate_refuses(values: list[float], confidence: float) -> None:
    with pytest.raises(InputError, match="at least one score and a confidence"):
        estimate(values, confidence)


def test_three_seeds_are_covered_by_t_and_not_by_a_bootstrap() -> None:
    """Student's interval holds the mean of normal scores in 95 % of cases, the percentiles of all 27 resamples in 67 %.

    Sorted scores a < b < c: the least resample mean is a, once, the next (2 a + b) / 3, three times. The 2.5 %
    percentile is at place 0.025 * 26 = 0.65 between them, so the lower end is a + w (b - a) with w = 0.65 / 3. It is
    above 0 where a > 0, in 1/8 of cases, and where a < 0 and both others are above -a (1 - w) / w; the upper end alike.
    """
    count, w = 4000, 0.65 / 3
    scores = np.random.default_rng(0).standard_normal((count, 3))
    intervals = [ends(estimate(each)) for each in scores.tolist()]
    by_t = np.mean([low <= 0 <= high for low, high in intervals])
    means = scores[:, list(product(range(3), repeat=3))].mean(-1)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    by_bootstrap = np.mean((low <= 0) & (high >= 0))
    inside = integrate.quad(lambda a: stats.norm.pdf(a) * stats.norm.sf(a * (1 - w) / w) ** 2, 0, math.inf)[0]
    expected = 1 - 2 * (1 / 8 + 3 * inside)
    assert round(expected, 2) == 0.67
    for found, covered in ((by_t, 0.95), (by_bootstrap, expected)):
        # Four standard errors of a share of so many draws.
        assert abs(found - covered) < 4 * math.sqrt(covered * (1 - covered) / count)
    # No resample leaves the scores, between which 0 lies unless all three are on one side.
    assert by_bootstrap <= np.mean((scores.min(1) <= 0) & (scores.max(1) >= 0))


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=8))
def test_differences_are_paired_by_seed(pairs: list[tuple[float, float]]) -> None:
    """Extra seeds and the order of the mappings do not matter."""
    scores = {seed: pair[0] for seed, pair in enumerate(pairs)} | {100: 7.0}
    baseline = {-1: 3.0} | {seed: pairs[seed][1] for seed in reversed(range(len(pairs)))}
    found = paired_difference(scores, baseline)
    assert found.seeds == tuple(range(len(pairs)))
    assert found.estimate == estimate(a - b for a, b in pairs)
    swapped = paired_difference(baseline, scores)
    assert swapped.estimate.mean == -found.estimate.mean


def test_methods_without_a_common_seed_have_no_difference() -> None:
    with pytest.raises(InputError, match=r"no seed is in both \[0\] and \[1, 2\]"):
        paired_difference({0: 1.0}, {2: 1.0, 1: 1.0})


def drawn(seeds: int, examples: int, right: float, rng: np.random.Generator) -> np.ndarray:
    """Predictions (seeds, examples) of label 0 that are right with a probability."""
    return (rng.random((seeds, examples)) > right).astype(int)


def test_equal_predictions_do_not_differ() -> None:
    predictions = drawn(3, 50, 0.7, np.random.default_rng(0))
    found = bootstrap_difference(predictions, predictions, np.zeros(50, int), metric=accuracy, n_resamples=50)
    assert found == Interval(0.0, 0.0, 0.0)


def test_a_bootstrapped_difference_turns_around_with_its_methods() -> None:
    rng = np.random.default_rng(0)
    labels, one, two = np.zeros(80, int), drawn(3, 80, 0.9, rng), drawn(3, 80, 0.6, rng)
    found = bootstrap_difference(one, two, labels, metric=accuracy, n_resamples=99)
    swapped = bootstrap_difference(two, one, labels, metric=accuracy, n_resamples=99)
    # Six accuracies, each rounded, and their sum.
    assert found.mean == pytest.approx(np.mean(one == 0) - np.mean(two == 0), rel=0, abs=8 * EPS)
    assert found.mean == -swapped.mean
    # An interpolation of two numbers below 1, from either side.
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low), rel=0, abs=4 * EPS)
    assert found.low < found.mean < found.high
    assert found == bootstrap_difference(one, two, labels, metric=accuracy, n_resamples=99, rng_seed=0)
    assert found != bootstrap_difference(one, two, labels, metric=accuracy, n_resamples=99, rng_seed=1)


def test_the_bootstrap_of_examples_is_as_wide_as_their_standard_error() -> None:
    """One seed: 2 z sd / sqrt(examples). A 2.5 % quantile of m draws is off by sqrt(0.025 * 0.975 / m) / pdf(z)."""
    rng, examples, resamples = np.random.default_rng(0), 1000, 1000
    labels, one, two = np.zeros(examples, int), drawn(1, examples, 0.9, rng), drawn(1, examples, 0.8, rng)
    found = bootstrap_difference(one, two, labels, metric=accuracy, n_resamples=resamples)
    error, z = np.std(two[0] - one[0]) / math.sqrt(examples), stats.norm.ppf(0.975)
    # Four standard errors of the difference of two quantiles, and the steps of 1 / examples that an accuracy makes.
    off = 4 * math.sqrt(2 * 0.025 * 0.975 / resamples) / stats.norm.pdf(z) * error + 2 / examples
    assert abs((found.high - found.low) - 2 * z * error) < off


def test_the_bootstrap_contains_the_truth() -> None:
    """An end of m resamples is on average at the share (0.025 (m - 1) + 1) / (m + 1) of what they are drawn from.

    Another 1 % is for the noise of the ends, the divisor n of a bootstrap's variance, and the steps of an accuracy.
    """
    sets, resamples, labels = 200, 200, np.zeros(100, int)
    hits = 0
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        one, two = drawn(1, len(labels), 0.8, rng), drawn(1, len(labels), 0.6, rng)
        found = bootstrap_difference(one, two, labels, metric=accuracy, n_resamples=resamples, rng_seed=seed)
        hits += found.low <= 0.8 - 0.6 <= found.high
    covered = 1 - 2 * (0.025 * (resamples - 1) + 1) / (resamples + 1) - 0.01
    # Four standard errors of a share of so many sets.
    assert hits / sets > covered - 4 * math.sqrt(covered * (1 - covered) / sets)


@given(st.lists(SCORES, min_size=1, max_size=5), st.integers(0, 9))
def test_a_bootstrap_never_leaves_its_seeds(values: list[float], rng_seed: int) -> None:
    """Why it is too narrow for few; each difference is a mean of up to five, whose sum rounds."""
    one = np.array(values)[:, None]
    found = bootstrap_difference(
        one, np.zeros_like(one), np.zeros(1), metric=mean_prediction, rng_seed=rng_seed, n_resamples=20
    )
    rounding = 8 * EPS * max(map(abs, values))
    assert min(values) - rounding <= found.low <= found.high <= max(values) + rounding
    assert found.mean == pytest.approx(np.mean(values), rel=0, abs=rounding)


@pytest.mark.parametrize(
    ("shapes", "resamples"),
    [
        (((2, 3), (2, 4), (3,)), 9),
        (((2, 3), (2, 3), (2,)), 9),
        (((3,), (3,), (3,)), 9),
        (((0, 3), (0, 3), (3,)), 9),
        (((2, 0), (2, 0), (0,)), 9),
        (((2, 3), (2, 3), (3,)), 0),
    ],
)
def test_a_bootstrap_refuses(shapes: tuple[tuple[int, ...], ...], resamples: int) -> None:
    predictions, baseline, labels = map(np.zeros, shapes)
    with pytest.raises(InputError, match="expected "):
        bootstrap_difference(predictions, baseline, labels, metric=accuracy, n_resamples=resamples)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_steps_down(p_values: list[float]) -> None:
    named = {f"p{i}": p for i, p in enumerate(p_values)}
    expected, before = {}, 0.0
    for passed, name in enumerate(sorted(named, key=lambda name: named[name])):
        before = expected[name] = max(before, min(1.0, named[name] * (len(named) - passed)))
    found = holm(named)
    assert list(found) == list(named)
    assert found == pytest.approx(expected, rel=2 * EPS, abs=0)


def test_holm_by_hand() -> None:
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06}, rel=2 * EPS)


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p(bad: float) -> None:
    with pytest.raises(InputError, match=r"in \[0, 1\]; got \{'b'"):
        holm({"a": 0.5, "b": bad})


def test_comparisons_whose_p_is_not_known_yet_count() -> None:
    assert holm({"a": 0.04, "b": 0.01}, n_pending=1) == pytest.approx({"a": 0.08, "b": 0.03}, rel=2 * EPS)


def test_families_are_adjusted_side_by_side() -> None:
    families = np.random.default_rng(0).random((50, 4))
    assert holm_adjusted(families).tolist() == [[*holm(dict(enumerate(family))).values()] for family in families]


def test_means_that_differ_by_rounding_share_a_rank() -> None:
    means = [(373 / 400 + 371 / 400) / 2, 372 / 400]
    assert means[0] != means[1]
    scores = pd.DataFrame([[*means, 0.5], [*means[::-1], math.nan]], index=["a", "b"], columns=list("xyz"))
    found = average_ranks(scores, larger_is_better={"a": True, "b": False})
    assert found.to_dict() == {"x": 1.5, "y": 1.5, "z": 3.0}


def test_average_ranks_by_hand() -> None:
    scores = pd.DataFrame(
        {"a": [0.9, 1.0, 0.5], "b": [0.9, 2.0, math.nan], "c": [0.8, 0.5, math.nan], "d": [0.95, math.inf, 0.4]},
        index=["acc", "loss", "f1"],
    )
    found = average_ranks(scores, larger_is_better={"acc": True, "loss": False, "f1": True, "other": True})
    ranks = {"a": (2.5, 2, 1), "b": (2.5, 3, 3.5), "c": (4, 1, 3.5), "d": (1, 4, 2)}
    assert found.to_dict() == {method: sum(each) / 3 for method, each in ranks.items()}
    assert list(found.index) == list("abcd")


@settings(deadline=None)
@given(st.lists(st.lists(SCORES, min_size=3, max_size=3), min_size=1, max_size=5), st.booleans())
def test_ranks_share_what_there_is(rows: list[list[float]], larger_is_better: bool) -> None:
    """1 + 2 + 3, however many are equal."""
    tasks = dict.fromkeys((f"t{i}" for i in range(len(rows))), larger_is_better)
    found = average_ranks(pd.DataFrame(rows, index=list(tasks), columns=list("abc")), larger_is_better=tasks)
    assert found.sum() == pytest.approx(6, rel=8 * EPS)
    other = average_ranks(
        -pd.DataFrame(rows, index=list(tasks), columns=list("abc")),
        larger_is_better=dict.fromkeys(tasks, not larger_is_better),
    )
    assert found.equals(other)


def test_ranks_need_tasks_and_what_is_better() -> None:
    scores = pd.DataFrame({"a": [1.0], "b": [2.0]}, index=["acc"])
    with pytest.raises(InputError, match=r"missing for \['acc'\]"):
        average_ranks(scores, larger_is_better={"loss": False})
    with pytest.raises(InputError, match="expected tasks and methods"):
        average_ranks(scores.iloc[:0], larger_is_better={})
