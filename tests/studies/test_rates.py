"""Which learning rates and seeds are run, and which rate is the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailora.studies.lr_search import MAX_EXTENSION_DECADES, LrGrid, LrSearch, SearchState
from ailora.studies.study_config import RateConfig

Score = Callable[[float, int], float]


def ran(
    schedule: LrSearch, score: Score, earlier: Mapping[tuple[float, int], float] | None = None
) -> tuple[SearchState, dict[tuple[float, int], float]]:
    """Run everything that a schedule asks for, until it asks for nothing more."""
    scores = dict(earlier or {})
    for _ in range(100):
        progress = schedule.plan(scores)
        new = [spec for spec in progress.required if spec not in scores]
        if not new:
            return progress, scores
        scores |= {spec: score(*spec) for spec in new}
    raise AssertionError("the schedule never ends")


def peaked(at: float, noise: float = 0.0) -> Score:
    """Falls with the distance from a rate, in decades; seeds differ by a little."""
    return lambda rate, seed: -abs(math.log10(rate / at)) + noise * math.sin(seed * 7 + rate * 1e5)


def rates(low: float, high: float, per_decade: int = 2) -> LrGrid:
    return LrGrid.from_config(RateConfig.model_validate({"from": low, "to": high, "per_decade": per_decade}))


def test_a_range_is_geometric_and_holds_both_ends() -> None:
    assert rates(1e-4, 1e-2).initial == (1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2)
    assert len(rates(1e-5, 1e-2, per_decade=4).initial) == 13
    assert rates(1e-3, 1e-3).initial == (1e-3,)


def test_exact_values_are_tried_in_ascending_order_and_no_others() -> None:
    exact = LrGrid.from_config(RateConfig(values=[3e-3, 1e-3]))
    assert exact.initial == (1e-3, 3e-3)
    assert exact.neighbours(1e-3) == [3e-3]


def test_the_best_in_the_middle_is_confirmed_with_its_neighbours() -> None:
    progress, scores = ran(LrSearch(rates(1e-4, 1e-2), [0, 1, 2]), peaked(1e-3))
    assert progress.best == 1e-3
    assert progress.ended
    confirmed = {rate for rate, seed in scores if seed == 2}
    assert confirmed == {3.16228e-4, 1e-3, 3.16228e-3}
    assert len(scores) == 5 + 3 * 2


def test_a_best_at_the_edge_extends_the_range() -> None:
    progress, scores = ran(LrSearch(rates(1e-4, 1e-3), [0]), peaked(1e-2))
    assert progress.best == 1e-2
    assert max(rate for rate, _ in scores) == pytest.approx(3.16228e-2)


def test_the_range_is_extended_downwards_too() -> None:
    progress, _ = ran(LrSearch(rates(1e-3, 1e-2), [0]), peaked(1e-4))
    assert progress.best == 1e-4


def test_an_extension_has_an_end() -> None:
    progress, scores = ran(LrSearch(rates(1e-4, 1e-3), [0]), lambda rate, seed: rate)
    assert progress.best == pytest.approx(1e-3 * 10**MAX_EXTENSION_DECADES)
    assert len(scores) == 3 + 2 * MAX_EXTENSION_DECADES


def test_exact_values_are_never_extended() -> None:
    progress, scores = ran(LrSearch(LrGrid((1e-4, 1e-3)), [0]), lambda rate, seed: rate)
    assert progress.best == 1e-3
    assert len(scores) == 2


def test_extra_seeds_run_at_the_best_rate_alone() -> None:
    progress, scores = ran(LrSearch(rates(1e-4, 1e-2), [0, 1], [7, 8]), peaked(1e-3))
    assert {rate for rate, seed in scores if seed in (7, 8)} == {progress.best}


def test_all_seeds_run_everywhere_when_asked() -> None:
    _, scores = ran(LrSearch(rates(1e-4, 1e-2), [0, 1], everywhere=True), peaked(1e-3))
    assert {rate for rate, seed in scores if seed == 1} == set(rates(1e-4, 1e-2).initial)


def test_a_lucky_first_seed_is_overruled_by_the_mean() -> None:
    lucky = lambda rate, seed: 1.0 if (rate, seed) == (1e-3, 0) else peaked(3.16228e-3)(rate, seed)  # noqa: E731
    progress, scores = ran(LrSearch(rates(1e-4, 1e-2), [0, 1, 2]), lucky)
    assert progress.best == 3.16228e-3
    # The neighbour on the other side had to be confirmed as well.
    assert (1e-2, 2) in scores


def test_a_rate_with_a_failed_run_is_not_the_best() -> None:
    score = lambda rate, seed: math.nan if rate > 2e-3 else rate  # noqa: E731
    progress, _ = ran(LrSearch(rates(1e-4, 1e-2), [0, 1]), score)
    assert progress.best == 1e-3


def test_a_method_that_always_fails_has_no_best_and_ends() -> None:
    progress, scores = ran(LrSearch(rates(1e-4, 1e-2), [0, 1], [2]), lambda rate, seed: math.nan)
    assert progress.best is None
    assert progress.ended
    assert len(scores) == 5


def test_nothing_is_known_before_the_first_sweep_has_ended() -> None:
    schedule = LrSearch(rates(1e-4, 1e-2), [3, 4])
    progress = schedule.plan({(1e-3, 3): 0.5})
    assert progress.best is None
    assert not progress.ended
    assert progress.required == [(rate, 3) for rate in schedule.rates.initial]


def test_a_better_rate_of_an_extended_grid_is_chosen() -> None:
    """It starts with a single seed, beside rates of the earlier grid with all seeds."""
    score = lambda rate, seed: {1e-5: 0.7, 1e-4: 0.8, 1e-3: 0.78, 1e-2: 0.9}[rate] + 0.001 * seed  # noqa: E731
    earlier, extended = LrGrid((1e-5, 1e-4)), LrGrid((1e-5, 1e-4, 1e-3, 1e-2))
    progress, scores = ran(LrSearch(earlier, [0, 1, 2]), score)
    assert progress.best == 1e-4
    progress, scores = ran(LrSearch(extended, [0, 1, 2]), score, scores)
    assert (progress.best, progress.ended) == (1e-2, True)
    assert {rate for rate, seed in scores if seed == 2} == set(extended.initial)


def test_a_rate_of_an_earlier_grid_stays_the_best_if_its_seeds_are() -> None:
    """The new rate has a lucky first seed."""
    means = {1e-5: 0.7, 1e-4: 0.8, 1e-3: 0.5, 1e-2: 0.6}
    score = lambda rate, seed: 0.9 if (rate, seed) == (1e-2, 0) else means[rate]  # noqa: E731
    _, scores = ran(LrSearch(LrGrid((1e-5, 1e-4)), [0, 1]), score)
    progress, scores = ran(LrSearch(LrGrid(tuple(means)), [0, 1]), score, scores)
    assert (progress.best, progress.ended) == (1e-4, True)


@given(
    at=st.floats(-6, 0),
    noise=st.floats(0, 0.4),
    seeds=st.integers(1, 3),
    extra=st.integers(0, 2),
    everywhere=st.booleans(),
    failing=st.floats(0, 0.3),
)
def test_every_schedule_ends_with_a_best_whose_neighbours_are_measured(
    at: float, noise: float, seeds: int, extra: int, everywhere: bool, failing: float
) -> None:
    def score(rate: float, seed: int) -> float:
        # Some runs fail, always the same ones.
        return math.nan if (hash((rate, seed)) % 1000) / 1000 < failing else peaked(10**at, noise)(rate, seed)

    numbers = list(range(seeds))
    schedule = LrSearch(rates(1e-4, 1e-2), numbers, list(range(10, 10 + extra)), everywhere)
    progress, scores = ran(schedule, score)
    assert progress.ended
    if progress.best is None:
        return
    tried = {rate for rate, _ in scores}
    for near in [progress.best, *schedule.rates.neighbours(progress.best)]:
        own = [scores[near, seed] for seed in numbers if (near, seed) in scores]
        assert len(own) == seeds or any(map(math.isnan, own))
    full = {r: sum(scores[r, s] for s in numbers) / seeds for r in tried if all((r, s) in scores for s in numbers)}
    assert full[progress.best] == pytest.approx(max(mean for mean in full.values() if not math.isnan(mean)))
