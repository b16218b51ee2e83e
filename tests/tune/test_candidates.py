"""Candidates spread their rates evenly, whatever the budget and the number of choices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ailora.studies.trial import Condition
from ailora.tune.candidates import RateSpan, RateValues, spread_candidates


def _spans(choices: int) -> dict[Condition, RateSpan]:
    return {Condition("base", f"policy {number}"): RateSpan(1e-3) for number in range(choices)}


def _places(rates: list[float]) -> list[float]:
    """Places of rates in their span, from 0 to 1."""
    return sorted((math.log10(rate / 1e-3) + 1.5) / 3 for rate in rates)


@pytest.mark.parametrize("choices", [1, 2, 8, 16])
@pytest.mark.parametrize("count", [7, 22, 44])
def test_no_gap_between_rates_is_much_wider_than_even_ones(choices: int, count: int) -> None:
    places = _places([c.learning_rate for c in spread_candidates(_spans(choices), count)])
    gaps = [high - low for low, high in pairwise([0.0, *places, 1.0])]
    assert max(gaps) <= 3 / count


def test_the_rates_of_each_choice_spread_as_well() -> None:
    candidates = spread_candidates(_spans(8), 32)
    for condition in _spans(8):
        places = _places([c.learning_rate for c in candidates if c.condition == condition])
        assert len(places) == 4
        assert max(high - low for low, high in pairwise(places)) < 0.26


def test_a_larger_budget_keeps_the_candidates_of_a_smaller_one() -> None:
    assert spread_candidates(_spans(8), 44)[:22] == spread_candidates(_spans(8), 22)


def test_the_first_candidate_is_the_center_and_all_lie_in_the_span() -> None:
    candidates = spread_candidates(_spans(3), 100)
    assert candidates[0].learning_rate == 1e-3
    assert all(3.16e-5 <= candidate.learning_rate <= 3.17e-2 for candidate in candidates)
    assert len({(c.condition, c.learning_rate) for c in candidates}) == 100


def test_exact_values_are_each_tried_once_and_far_ones_first() -> None:
    values = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    rates = {condition: RateValues(values) for condition in _spans(2)}
    candidates = spread_candidates(rates, 100)
    assert [candidate.number for candidate in candidates] == list(range(10))
    for condition in rates:
        own = [c.learning_rate for c in candidates if c.condition == condition]
        assert sorted(own) == list(values)
        # The second lies beyond a neighbour of the first.
        assert abs(values.index(own[0]) - values.index(own[1])) >= 2
