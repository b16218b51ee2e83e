"""How soon a method has the baseline's final loss, and the runs that put such a claim to the test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ailora.studies.comparison import compare
from ailora.studies.study_design import StudyDesign
from ailora.studies.time_to_loss import FirstReached, TimeToLoss
from ailora.studies.trial import Condition, Status, Trial, TrialSpec
from ailora.studies.worker import time_to_loss_trials
from tests.studies.sample_trials import Result, make_design, outcome, quickly, ran, trial

__all__ = ["quickly"]

OURS = Condition("base", "ailora")
#: Of the baseline: 0.5 at step 40.
SLOW = (0.9, 0.8, 0.6, 0.5)


def study(*ours: Sequence[float], baseline: Sequence[float] = SLOW) -> tuple[StudyDesign, list[Trial]]:
    """A seed for each of the method's histories."""
    design = make_design(seeds=list(range(len(ours))))
    return design, ran(
        design, lambda spec: outcome(0.8, losses=ours[spec.seed] if spec.condition == OURS else baseline)
    )


def speed(design: StudyDesign, trials: Sequence[Trial]) -> TimeToLoss:
    found = compare(trials, design).against_baseline[OURS].time_to_loss
    assert found is not None
    return found


def confirmed(design: StudyDesign, trials: Sequence[Trial], *results: Result) -> bool | None:
    """What runs of 20 steps say, the first seed's first."""
    specs = [TrialSpec(OURS, 1e-3, seed, 20) for seed in range(len(results))]
    return speed(design, [*trials, *map(trial, [design] * len(specs), specs, results)]).confirmed


def test_a_loss_is_reached_at_the_first_evaluation_that_has_it() -> None:
    found = speed(*study((0.9, 0.5, 0.4, 0.3), (0.4, 0.6, 0.6, 0.6), (0.9, 0.8, 0.6, 0.5)))
    assert found.reached == {0: FirstReached(20, 40), 1: FirstReached(10, 40), 2: FirstReached(40, 40)}
    assert found.share == 0.5
    # Eight seconds for 40 steps.
    assert found.seconds == 4.0


def test_seeds_that_never_reach_it_are_censored_and_not_in_the_median() -> None:
    found = speed(*study((0.9, 0.4, 0.4, 0.4), (0.9, 0.9, 0.9, 0.9)))
    assert found.reached == {0: FirstReached(20, 40), 1: FirstReached(None, 40)}
    assert (found.share, found.seconds) == (0.5, 4.0)
    never = speed(*study((0.9, 0.9, 0.9, 0.9)))
    assert (never.share, never.seconds, never.confirmed) == (None, None, None)


def test_each_seed_is_compared_with_the_baseline_s_own() -> None:
    design = make_design(seeds=[0, 1])
    finals = {0: 0.5, 1: 0.3}
    trials = ran(
        design,
        lambda spec: outcome(0.8, losses=(0.9, 0.5, 0.3, 0.2) if spec.condition == OURS else (0.9, finals[spec.seed])),
    )
    assert speed(design, trials).reached == {0: FirstReached(20, 40), 1: FirstReached(30, 40)}


@pytest.mark.parametrize("baseline", [(), (0.9, math.nan)])
def test_without_a_final_loss_there_is_no_speed(baseline: Sequence[float]) -> None:
    design, trials = study((0.9, 0.4), baseline=baseline)
    assert compare(trials, design).against_baseline[OURS].time_to_loss is None
    assert time_to_loss_trials(trials, design) == []


def test_a_run_without_evaluations_has_no_speed() -> None:
    design, trials = study(())
    assert compare(trials, design).against_baseline[OURS].time_to_loss is None


FAST = (0.9, 0.5, 0.4, 0.3)


def test_a_claim_is_confirmed_in_the_mean_over_seeds() -> None:
    design, trials = study(FAST, FAST)
    at = lambda loss: outcome(0.8, losses=(0.9, loss))  # noqa: E731
    assert confirmed(design, trials) is None
    assert confirmed(design, trials, at(0.5), at(0.5)) is True
    assert confirmed(design, trials, at(0.55), at(0.4)) is True
    assert confirmed(design, trials, at(0.55), at(0.5)) is False


def test_a_claim_is_refuted_by_a_run_that_failed_and_open_until_all_have_ended() -> None:
    design, trials = study(FAST, FAST)
    good = outcome(0.8, losses=(0.9, 0.1))
    assert confirmed(design, trials, good, "diverged") is False
    assert confirmed(design, trials, good, Status.RUNNING) is None


def test_runs_at_another_rate_confirm_nothing() -> None:
    design, trials = study(FAST)
    other = trial(design, TrialSpec(OURS, 1e-2, 0, 20), outcome(0.8, losses=(0.1,)))
    assert speed(design, [*trials, other]).confirmed is None


def test_runs_that_confirm_are_counted_and_change_neither_the_best_nor_the_score() -> None:
    design, trials = study(FAST, FAST)
    specs = [TrialSpec(OURS, 1e-3, seed, 20) for seed in (0, 1)]
    more = [trial(design, specs[0], outcome(0.1)), trial(design, specs[1], "out of memory")]
    before, after = (compare(found, design).results[OURS] for found in (trials, [*trials, *more]))
    assert (after.search, after.curve, after.at_best, after.score) == (
        before.search,
        before.curve,
        before.at_best,
        before.score,
    )
    assert (before.status_counts, after.status_counts) == ({Status.COMPLETE: 2}, {Status.COMPLETE: 3, Status.FAIL: 1})
    assert after.errors == ["0.001, seed 1, 20 steps: out of memory"]


def test_what_reaches_the_loss_before_the_end_is_run_for_the_median_of_its_steps() -> None:
    design, trials = study(FAST, (0.5, 0.4, 0.4, 0.4), (0.9, 0.9, 0.5, 0.4))
    assert time_to_loss_trials(trials, design) == [TrialSpec(OURS, 1e-3, seed, 20) for seed in (0, 1, 2)]
    # Half way between two evaluations, rounded up.
    design, trials = study(FAST, (0.9, 0.9, 0.5, 0.4))
    assert {spec.max_steps for spec in time_to_loss_trials(trials, design)} == {25}


@pytest.mark.parametrize("other", [(0.9, 0.9, 0.9, 0.9), (0.9, 0.9, 0.9, 0.5)])
def test_one_seed_that_does_not_is_enough_for_no_claim(other: Sequence[float]) -> None:
    design, trials = study(FAST, FAST, other)
    assert time_to_loss_trials(trials, design) == []


def test_nothing_is_claimed_of_a_method_without_a_best_rate() -> None:
    design = make_design()
    trials = ran(design, lambda spec: "diverged" if spec.condition == OURS else outcome(0.8, losses=SLOW))
    assert time_to_loss_trials(trials, design) == []


def test_extra_seeds_join_the_median_and_are_not_run_again() -> None:
    design = make_design(seeds=[0, 1], extra_seeds=[7])
    ours = {0: FAST, 1: FAST, 7: (0.9, 0.9, 0.5, 0.4)}
    trials = ran(design, lambda spec: outcome(0.8, losses=ours[spec.seed] if spec.condition == OURS else SLOW))
    assert time_to_loss_trials(trials, design) == [TrialSpec(OURS, 1e-3, 0, 20), TrialSpec(OURS, 1e-3, 1, 20)]
    slow = [*trials[:-1], trial(design, TrialSpec(OURS, 1e-3, 7), outcome(0.8, losses=(0.9, 0.9)))]
    assert time_to_loss_trials(slow, design) == []


def test_confirmations_of_a_confirmed_study_are_the_same() -> None:
    design, trials = study(FAST, FAST)
    specs = time_to_loss_trials(trials, design)
    more = [trial(design, spec, outcome(0.9, losses=(0.6, 0.4))) for spec in specs]
    assert time_to_loss_trials([*trials, *more], design) == specs
    assert speed(design, [*trials, *more]).confirmed is True


def test_an_evaluation_before_training_is_no_speed() -> None:
    """With `eval_on_start`, a baseline that gets worse is reached at step 0."""
    design = make_design(seeds=[0])
    start = {"step": 0, "loss": 0.5}
    trials = ran(design, lambda spec: outcome(0.8, history=[start, {"step": 10, "loss": 0.7}]))
    assert speed(design, trials).share == 0.0
    assert time_to_loss_trials(trials, design) == []
    only = speed(design, ran(design, lambda spec: outcome(0.8, history=[start])))
    assert (only.share, only.seconds, only.confirmation_steps) == (0.0, 0.0, None)


def test_a_seed_that_never_reaches_the_loss_leaves_an_earlier_confirmation_out() -> None:
    """The runs were made before the third seed ran."""
    design, trials = study(FAST, FAST, (0.9, 0.9, 0.8, 0.7))
    good = outcome(0.8, losses=(0.6, 0.4))
    assert confirmed(design, trials, good, good) is None


def test_runs_of_an_earlier_length_confirm_nothing() -> None:
    design, trials = study(FAST)
    earlier = trial(design, TrialSpec(OURS, 1e-3, 0, 10), outcome(0.8, losses=(0.9,)))
    assert speed(design, [*trials, earlier]).confirmed is None
    now = trial(design, TrialSpec(OURS, 1e-3, 0, 20), outcome(0.8, losses=(0.9, 0.5)))
    assert speed(design, [*trials, earlier, now]).confirmed is True
