"""Which choice explains the differences between candidates is known where the differences are made."""

from __future__ import annotations

import math
import random

import pytest

from ailora.studies.choice_importance import measure_importance


def _candidates(count: int) -> list[dict[str, float | str]]:
    chance = random.Random(0)
    return [
        {
            "rate": 10 ** chance.uniform(-5, -2),
            "roles": chance.choice(["two", "all"]),
            "rank": "8",
            "init": chance.choice("abc"),
        }
        for _ in range(count)
    ]


def test_the_choice_that_makes_the_differences_explains_them() -> None:
    candidates = _candidates(24)
    rates = measure_importance(candidates, [abs(math.log10(float(c["rate"])) + 3.5) for c in candidates])
    assert rates[0].name == "rate"
    assert rates[0].share > 0.8
    assert rates[0].low <= rates[0].share <= rates[0].high
    roles = measure_importance(candidates, [1.0 if c["roles"] == "all" else 2.0 for c in candidates])
    assert roles[0].name == "roles"
    assert roles[0].share > 0.8
    # A choice without an alternative is not named.
    assert {importance.name for importance in rates} == {"rate", "roles", "init"}


def test_noise_leaves_wide_intervals() -> None:
    candidates = _candidates(24)
    chance = random.Random(1)
    importances = measure_importance(candidates, [chance.gauss(0, 1) for _ in candidates])
    assert max(importance.high - importance.low for importance in importances) > 0.2


def test_the_same_candidates_give_the_same_numbers() -> None:
    candidates = _candidates(12)
    values = [float(c["rate"]) for c in candidates]
    assert measure_importance(candidates, values) == measure_importance(candidates, values)


def test_small_differences_are_explained_as_well_as_large_ones() -> None:
    """Up to differences that are rounding."""
    candidates = _candidates(12)
    sizes = [math.log10(float(c["rate"])) for c in candidates]
    large = measure_importance(candidates, [0.5 + 1e-3 * size for size in sizes])
    small = measure_importance(candidates, [0.5 + 1e-9 * size for size in sizes])
    assert (small[0].name, large[0].name) == ("rate", "rate")
    assert small[0].share == pytest.approx(large[0].share, abs=0.1)
    assert measure_importance(candidates, [0.5 + 1e-14 * size for size in sizes]) == []


def test_few_candidates_or_equal_results_say_nothing() -> None:
    candidates = _candidates(24)
    assert measure_importance(candidates[:7], list(range(7))) == []
    assert measure_importance(candidates, [1.0] * 24) == []
    # Those that failed do not count.
    assert measure_importance(candidates[:10], [math.nan] * 5 + [1.0, 2.0, 3.0, 4.0, 5.0]) == []
