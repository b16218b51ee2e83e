"""Verdicts of a family of comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from ailora.studies.sequential_tests import LookMoments, LookSchedule
from ailora.studies.verdicts import ALPHA, Judgement, PairedScores, StudyVerdict, equivalence_seeds, judge

FIVE = LookSchedule((5,))


def pair(differences: Sequence[float], *, margin: float | None = 0.01, larger_is_better: bool = True) -> PairedScores:
    scores = dict(enumerate(differences))
    baseline = dict.fromkeys(scores, 0.0)
    return PairedScores.from_scores(scores, baseline, list(scores), margin=margin, larger_is_better=larger_is_better)


def judged(differences: Sequence[float], **changes: object) -> Judgement:
    return judge({"it": pair(differences, **changes)}, LookSchedule((len(differences),)))["it"]  # type: ignore[arg-type]


def test_verdicts_are_those_of_intervals() -> None:
    """TOST at 5 % is the 90 % interval within the margin; a difference, the 95 % interval without 0."""
    rng = np.random.default_rng(0)
    seen = set()
    for mean in (0.0, 0.008, 0.02):
        for _ in range(50):
            values = rng.normal(mean, 0.006, 5)
            half = [stats.sem(values) * stats.t.ppf(level, 4) for level in (0.95, 0.975)]
            found = judged(values.tolist())
            assert found.equivalent is bool(abs(values.mean()) + half[0] < 0.01)
            assert (found.verdict in {StudyVerdict.BETTER, StudyVerdict.WORSE}) is bool(abs(values.mean()) > half[1])
            assert found.smallest_margin == pytest.approx(abs(values.mean()) + half[0], rel=1e-3)
            seen.add(str(found))
    assert seen >= {"better", "better and equivalent", "equivalent", "undecided"}


def test_a_smaller_loss_is_better() -> None:
    values = [-0.05, -0.06, -0.05, -0.04, -0.05]
    assert judged(values).verdict is StudyVerdict.WORSE
    assert judged(values, larger_is_better=False).verdict is StudyVerdict.BETTER


def test_the_family_is_corrected_for_differences_and_for_equivalence_apart() -> None:
    """A p of 0.03 is enough alone, and in a family whose other members are decided; not beside an undecided one."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 5)
    values = (values - values.mean()) / values.std(ddof=1)
    at_p = [float(v) for v in values * 0.01 + 0.01 * stats.t.isf(0.015, 4) / math.sqrt(5)]
    alone = judged(at_p, margin=None)
    assert alone.p_value == pytest.approx(0.03, rel=1e-3)
    clear, unclear = [0.5, 0.51, 0.5, 0.49, 0.5], [0.01, -0.01, 0.0, 0.02, -0.02]
    beside_clear, beside_unclear = (
        judge({"it": pair(at_p), "other": pair(other)}, FIVE)["it"].verdict for other in (clear, unclear)
    )
    assert (alone.verdict, beside_clear, beside_unclear) == ("better", "better", "undecided")
    assert judge({"it": pair(at_p)}, FIVE, n_pending=1)["it"].verdict is StudyVerdict.UNDECIDED


def test_the_smallest_margin_is_the_one_that_would_be_decided() -> None:
    unclear = [0.01, -0.012, 0.001, 0.02, -0.02]
    for others in ([], [unclear], [[0.0, 0.0001, 0.0, -0.0001, 0.0]]):
        family = {str(i): pair(other) for i, other in enumerate(others)}
        smallest = judge({"it": pair(unclear), **family}, FIVE)["it"].smallest_margin
        assert smallest is not None
        for factor, equivalent in ((0.999, False), (1.001, True)):
            found = judge({"it": pair(unclear, margin=factor * smallest), **family}, FIVE)["it"]
            assert found.equivalent is equivalent


@pytest.mark.parametrize("level", [0.05, 0.0125])
@pytest.mark.parametrize("ratio", [0.5, 2.0, 5.0])
def test_the_seeds_for_equivalence_have_the_power_that_they_claim(level: float, ratio: float) -> None:
    """Of equal methods, 80 % are shown to be equivalent, and less with a seed less."""
    n = equivalence_seeds(ratio, 1.0, level)
    rng = np.random.default_rng(2)
    powers = []
    for seeds in (n, n - 1):
        values = rng.normal(0, ratio, (20_000, seeds))
        half = stats.t.isf(level, seeds - 1) * values.std(axis=1, ddof=1) / math.sqrt(seeds)
        powers.append(np.mean(np.abs(values.mean(axis=1)) + half < 1.0))
    # The formula ignores that the spread is estimated: at few seeds it is cautious. Four standard errors are 0.011.
    assert powers[0] > 0.8 - 0.011
    assert powers[1] < 0.8 + 0.06


def test_three_seeds_leave_the_number_of_missing_seeds_open() -> None:
    """The 80 % interval of their spread is wide by a factor of 4.6, that of the seeds by its square."""
    values = np.array([-1.0, 0.0, 1.0]) * 0.02
    found = judged(values.tolist()).missing_seeds
    assert found is not None
    spread = [0.02 * math.sqrt(2 / stats.chi2.ppf(tail, 2)) for tail in (0.9, 0.1)]
    assert [s / 0.02 for s in spread] == pytest.approx([0.66, 3.08], abs=0.01)
    assert found == tuple(equivalence_seeds(s, 0.01, ALPHA) - 3 for s in spread)
    far = judged([-1.0, 0.0, 1.0]).missing_seeds
    assert far is not None
    # More than 10,000.
    assert far[1] is None


def test_missing_seeds_are_those_of_a_plan_whose_last_look_decides() -> None:
    """The boundaries of a sequential study are stricter than those of a single look, up to its last."""
    schedule = LookSchedule.between(3, 20)
    level = stats.norm.sf(schedule.one_sided.critical_value(ALPHA))
    assert 0.04 < level < 0.05
    values = [-0.02, 0.0, 0.02]
    found = judge({"it": pair(values)}, schedule)["it"].missing_seeds
    spread = [0.02 * math.sqrt(2 / stats.chi2.ppf(tail, 2)) for tail in (0.9, 0.1)]
    assert found == tuple(equivalence_seeds(s, 0.01, level) - 3 for s in spread)
    n = equivalence_seeds(2.0, 1.0, level)
    assert n > 20
    differences = np.random.default_rng(3).normal(0, 2.0, (20_000, n))
    moments = LookMoments.from_differences(differences, LookSchedule((*schedule.counts, n)))
    # Four standard errors are 0.011; a seed less has less power.
    assert np.mean(moments.equivalence_p(1.0)[:, -1] < ALPHA) == pytest.approx(0.8, abs=0.011 + 0.02)


def test_decided_comparisons_miss_no_seeds() -> None:
    assert judged([0.05, 0.06, 0.05, 0.04, 0.05]).missing_seeds is None
    assert judged([0.001, -0.002, 0.002, -0.001, 0.001]).missing_seeds is None


@pytest.mark.parametrize("values", [[math.nan, 0.1], [math.nan, math.nan], [math.inf, 0.1], [0.1]])
def test_below_two_seeds_nothing_is_decided(values: list[float]) -> None:
    found = judged(values)
    assert (found.verdict, found.p_value, found.missing_seeds, found.smallest_margin) == ("undecided", None, None, None)
