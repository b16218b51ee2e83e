"""How soon a method has the baseline's final loss, and the runs that put such a claim to the test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ailora.studies.comparison import compare
from ailora.studies.conditions import Cell, Grid, Group
from ailora.studies.lr_sweep import Reached
from ailora.studies.time_to_loss import Speed
from ailora.studies.time_to_loss_trials import confirmations
from ailora.studies.trial_storage import Status, Trial
from tests.studies.made import Result, grid_of, outcome, quickly, ran, trial

__all__ = ["quickly"]

OURS = Group("base", "ailora")
#: Of the baseline: 0.5 at step 40.
SLOW = (0.9, 0.8, 0.6, 0.5)


def study(*ours: Sequence[float], baseline: Sequence[float] = SLOW) -> tuple[Grid, list[Trial]]:
    """A seed for each of the method's histories."""
    grid = grid_of(seeds=list(range(len(ours))))
    return grid, ran(grid, lambda cell: outcome(0.8, losses=ours[cell.seed] if cell.group == OURS else baseline))


def speed(grid: Grid, trials: Sequence[Trial]) -> Speed:
    found = compare(trials, grid).compared[OURS].speed
    assert found is not None
    return found


def confirmed(grid: Grid, trials: Sequence[Trial], *results: Result) -> bool | None:
    """What runs of 20 steps say, the first seed's first."""
    cells = [Cell(OURS, 1e-3, seed, 20) for seed in range(len(results))]
    return speed(grid, [*trials, *map(trial, [grid] * len(cells), cells, results)]).confirmed


def test_a_loss_is_reached_at_the_first_evaluation_that_has_it() -> None:
    found = speed(*study((0.9, 0.5, 0.4, 0.3), (0.4, 0.6, 0.6, 0.6), (0.9, 0.8, 0.6, 0.5)))
    assert found.reached == {0: Reached(20, 40), 1: Reached(10, 40), 2: Reached(40, 40)}
    assert found.share == 0.5
    # Eight seconds for 40 steps.
    assert found.seconds == 4.0


def test_seeds_that_never_reach_it_are_censored_and_not_in_the_median() -> None:
    found = speed(*study((0.9, 0.4, 0.4, 0.4), (0.9, 0.9, 0.9, 0.9)))
    assert found.reached == {0: Reached(20, 40), 1: Reached(None, 40)}
    assert (found.share, found.seconds) == (0.5, 4.0)
    never = speed(*study((0.9, 0.9, 0.9, 0.9)))
    assert (never.share, never.seconds, never.confirmed) == (None, None, None)


def test_each_seed_is_compared_with_the_baseline_s_own() -> None:
    grid = grid_of(seeds=[0, 1])
    finals = {0: 0.5, 1: 0.3}
    trials = ran(
        grid,
        lambda cell: outcome(0.8, losses=(0.9, 0.5, 0.3, 0.2) if cell.group == OURS else (0.9, finals[cell.seed])),
    )
    assert speed(grid, trials).reached == {0: Reached(20, 40), 1: Reached(30, 40)}


@pytest.mark.parametrize("baseline", [(), (0.9, math.nan)])
def test_without_a_final_loss_there_is_no_speed(baseline: Sequence[float]) -> None:
    grid, trials = study((0.9, 0.4), baseline=baseline)
    assert compare(trials, grid).compared[OURS].speed is None
    assert confirmations(trials, grid) == []


def test_a_run_without_evaluations_has_no_speed() -> None:
    grid, trials = study(())
    assert compare(trials, grid).compared[OURS].speed is None


FAST = (0.9, 0.5, 0.4, 0.3)


def test_a_claim_is_confirmed_in_the_mean_over_seeds() -> None:
    grid, trials = study(FAST, FAST)
    at = lambda loss: outcome(0.8, losses=(0.9, loss))  # noqa: E731
    assert confirmed(grid, trials) is None
    assert confirmed(grid, trials, at(0.5), at(0.5)) is True
    assert confirmed(grid, trials, at(0.55), at(0.4)) is True
    assert confirmed(grid, trials, at(0.55), at(0.5)) is False


def test_a_claim_is_refuted_by_a_run_that_failed_and_open_until_all_have_ended() -> None:
    grid, trials = study(FAST, FAST)
    good = outcome(0.8, losses=(0.9, 0.1))
    assert confirmed(grid, trials, good, "diverged") is False
    assert confirmed(grid, trials, good, Status.RUNNING) is None


def test_runs_at_another_rate_confirm_nothing() -> None:
    grid, trials = study(FAST)
    other = trial(grid, Cell(OURS, 1e-2, 0, 20), outcome(0.8, losses=(0.1,)))
    assert speed(grid, [*trials, other]).confirmed is None


def test_runs_that_confirm_are_counted_and_change_neither_the_best_nor_the_score() -> None:
    grid, trials = study(FAST, FAST)
    cells = [Cell(OURS, 1e-3, seed, 20) for seed in (0, 1)]
    more = [trial(grid, cells[0], outcome(0.1)), trial(grid, cells[1], "out of memory")]
    before, after = (compare(found, grid).measured[OURS] for found in (trials, [*trials, *more]))
    assert (after.progress, after.curve, after.at_best, after.score) == (
        before.progress,
        before.curve,
        before.at_best,
        before.score,
    )
    assert (before.ended, after.ended, after.failed) == (2, 3, 1)
    assert after.errors == ["0.001, seed 1, 20 steps: out of memory"]


def test_what_reaches_the_loss_before_the_end_is_run_for_the_median_of_its_steps() -> None:
    grid, trials = study(FAST, (0.5, 0.4, 0.4, 0.4), (0.9, 0.9, 0.5, 0.4))
    assert confirmations(trials, grid) == [Cell(OURS, 1e-3, seed, 20) for seed in (0, 1, 2)]
    # Half way between two evaluations, rounded up.
    grid, trials = study(FAST, (0.9, 0.9, 0.5, 0.4))
    assert {cell.max_steps for cell in confirmations(trials, grid)} == {25}


@pytest.mark.parametrize("other", [(0.9, 0.9, 0.9, 0.9), (0.9, 0.9, 0.9, 0.5)])
def test_one_seed_that_does_not_is_enough_for_no_claim(other: Sequence[float]) -> None:
    grid, trials = study(FAST, FAST, other)
    assert confirmations(trials, grid) == []


def test_nothing_is_claimed_of_a_method_without_a_best_rate() -> None:
    grid = grid_of()
    trials = ran(grid, lambda cell: "diverged" if cell.group == OURS else outcome(0.8, losses=SLOW))
    assert confirmations(trials, grid) == []


def test_extra_seeds_join_the_median_and_are_not_run_again() -> None:
    grid = grid_of(seeds=[0, 1], extra_seeds=[7])
    ours = {0: FAST, 1: FAST, 7: (0.9, 0.9, 0.5, 0.4)}
    trials = ran(grid, lambda cell: outcome(0.8, losses=ours[cell.seed] if cell.group == OURS else SLOW))
    assert confirmations(trials, grid) == [Cell(OURS, 1e-3, 0, 20), Cell(OURS, 1e-3, 1, 20)]
    slow = [*trials[:-1], trial(grid, Cell(OURS, 1e-3, 7), outcome(0.8, losses=(0.9, 0.9)))]
    assert confirmations(slow, grid) == []


def test_confirmations_of_a_confirmed_study_are_the_same() -> None:
    grid, trials = study(FAST, FAST)
    cells = confirmations(trials, grid)
    more = [trial(grid, cell, outcome(0.9, losses=(0.6, 0.4))) for cell in cells]
    assert confirmations([*trials, *more], grid) == cells
    assert speed(grid, [*trials, *more]).confirmed is True
