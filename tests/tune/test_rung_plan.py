"""A plan uses a budget as far as it goes, and never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailora import InputError
from ailora.tune.rung_plan import RungPlan, rung_steps


@pytest.mark.parametrize(
    ("budget", "counts", "cost"),
    [(1, (1, 1, 1, 1), 1.0), (2, (7, 3, 1, 1), 1.8), (5, (19, 9, 4, 2), 5.0), (10, (35, 17, 8, 4), 9.6)],
)
def test_a_run_of_ten_evaluations_has_four_rungs(budget: float, counts: tuple[int, ...], cost: float) -> None:
    plan = RungPlan.within(range(100, 1001, 100), budget, max_candidates=1000)
    assert plan.steps == (100, 200, 500, 1000)
    assert plan.counts == counts
    assert plan.cost_runs == pytest.approx(cost)


@pytest.mark.parametrize(
    ("evaluations", "steps"),
    [
        ([10], (10,)),
        ([5, 10], (5, 10)),
        (range(1, 1001), (125, 250, 500, 1000)),
        # Epochs: two and three are equally near to half of five.
        ([20, 40, 60, 80, 100], (20, 40, 100)),
    ],
)
def test_rungs_end_at_evaluations(evaluations: list[int], steps: tuple[int, ...]) -> None:
    assert rung_steps(evaluations) == steps


@given(
    interval=st.integers(1, 50),
    evaluations=st.integers(1, 60),
    budget=st.floats(1, 40),
    overhead=st.floats(0, 0.2),
)
def test_one_candidate_more_would_cost_more_than_the_budget(
    interval: int, evaluations: int, budget: float, overhead: float
) -> None:
    steps = range(interval, interval * evaluations + 1, interval)
    budget += 4 * overhead
    plan = RungPlan.within(steps, budget, max_candidates=1000, overhead_runs=overhead)
    more = RungPlan.within(steps, 1e6, max_candidates=plan.counts[0] + 1, overhead_runs=overhead)
    # Sums of shares are rounded.
    assert plan.cost_runs <= budget + 1e-6
    assert more.cost_runs > budget
    assert plan.counts[-1] >= 1
    assert list(plan.counts) == sorted(plan.counts, reverse=True)


def test_less_than_a_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"the budget is 0\.9 of a run, and one candidate costs 1"):
        RungPlan.within([5, 10], 0.9, max_candidates=10)
