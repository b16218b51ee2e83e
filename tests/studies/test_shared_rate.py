"""Conclusions from one shared learning rate beside those from each method's best."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ailora.plots.study_charts import rate_charts, shared_rate_charts
from ailora.studies.comparison import Comparison, compare
from ailora.studies.shared_rate import Position
from ailora.studies.summary import StudySummary, summarize
from ailora.studies.trial import Condition, TrialSpec
from tests.studies.sample_trials import Result, make_design, outcome, quickly, ran

__all__ = ["quickly"]

RATES = [1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2]
OURS = Condition("base", "ailora")


def compared(factor: float = 10**0.5, gain: float = 0.0, **changes: Any) -> Comparison:
    """A study whose method trains like the baseline at `factor` times the rate, and better by `gain` at any rate."""

    def result(spec: TrialSpec) -> Result:
        ours = spec.condition.method == "ailora"
        decades = math.log10(spec.learning_rate * (factor if ours else 1) / 1e-3)
        value = 0.8 - 0.1 * decades**2 + 0.001 * spec.seed + (gain + 1e-6 * spec.seed if ours else 0)
        return outcome(value, test=value - 0.02, losses=(1 - value,))

    design = make_design(**{"learning_rate": {"values": RATES}} | changes)
    return compare(ran(design, result), design)


def table_of(summary: StudySummary) -> Any:
    (table,) = (table for table in summary.tables if table.topic == "shared rates")
    return table


def test_a_larger_effective_rate_is_ahead_below_the_best_rate_and_behind_above_it() -> None:
    """0.8 - 0.1 (x + 1/2)^2 minus 0.8 - 0.1 x^2 is -0.1 x - 0.025, with x in decades from the best rate."""
    shared = compared().against_baseline[OURS].shared_rates
    expected = dict(zip(RATES, [0.075, 0.025, -0.025, -0.075, -0.125], strict=True))
    assert {rate: d.estimate.mean for rate, d in shared.differences.items()} == pytest.approx(expected, abs=1e-5)
    ahead, behind = Position.AHEAD, Position.BEHIND
    assert list(shared.positions.values()) == [ahead, ahead, behind, behind, behind]
    assert shared.shift.factor == pytest.approx(10**0.5)
    assert shared.shift.seeds == (0,)
    assert shared.shift.rms_after == pytest.approx(0, abs=1e-5)
    assert shared.misleads


def test_where_a_smaller_score_is_better_the_sides_are_exchanged() -> None:
    shared = compared(metric="loss").against_baseline[OURS].shared_rates
    assert shared.differences[1e-4].estimate.mean == pytest.approx(-0.075, abs=1e-5)
    assert shared.positions[1e-4] is Position.AHEAD
    assert shared.shift.factor == pytest.approx(10**0.5)


def test_a_better_method_is_ahead_at_every_rate_and_nothing_misleads() -> None:
    comparison = compared(factor=1, gain=0.05)
    shared = comparison.against_baseline[OURS].shared_rates
    assert {*shared.positions.values(), shared.at_best} == {Position.AHEAD}
    assert not shared.misleads
    assert summarize(comparison).shared_rates == []
    assert table_of(summarize(comparison)).rows


def test_differences_are_paired_by_the_seeds_that_both_ran_at_the_rate() -> None:
    """The first seed runs everywhere, the others beside each method's best rate."""
    shared = compared(seeds=[0, 1, 2]).against_baseline[OURS].shared_rates
    seeds = {rate: difference.seeds for rate, difference in shared.differences.items()}
    assert seeds == {1e-4: (0,), 3.16228e-4: (0, 1, 2), 1e-3: (0, 1, 2), 3.16228e-3: (0,), 1e-2: (0,)}


def test_all_seeds_at_all_rates_give_the_factor_an_interval() -> None:
    shift = compared(seeds=[0, 1, 2], seeds_at="all").against_baseline[OURS].shared_rates.shift
    assert shift.seeds == (0, 1, 2)
    assert shift.low == shift.high == pytest.approx(10**0.5)


def test_methods_with_rates_of_their_own_share_none() -> None:
    methods = ["lora", {"ailora": {"method": "ailora", "learning_rate": {"values": [2e-5, 5e-5]}}}]
    comparison = compared(methods=methods)
    shared = comparison.against_baseline[OURS].shared_rates
    assert shared.differences == {}
    assert not shared.misleads
    assert "0 shared rates" in shared.shift.reason
    assert not [table for table in summarize(comparison).tables if table.topic == "shared rates"]
    assert list(shared_rate_charts(comparison)) == []


def test_the_sentence_says_what_one_would_have_concluded() -> None:
    comparison = compared(gain=0.002)
    (sentence,) = summarize(comparison).shared_rates
    assert sentence.startswith(
        "At one shared rate you would have concluded that ailora is ahead of lora at 0.0001 and 0.000316"
    )
    assert "behind lora at 0.001, 0.00316 and 0.01" in sentence
    verdict = comparison.against_baseline[OURS].verdict
    assert "each at its own best rate, ailora is ahead of lora (+0.0020 [" in sentence
    # The gain of 0.002 is no shift, and draws the fitted one a little to 1.
    assert f", {verdict}). The curve of ailora is nearest to that of lora at 3.1 times the rate: 0.0019" in sentence
    assert sentence in summarize(comparison).to_markdown("study")


def test_the_table_marks_conclusions_that_the_best_rates_do_not_confirm() -> None:
    table = table_of(summarize(compared(gain=0.002)))
    (row,) = table.rows
    cells = dict(zip(table.columns, row, strict=True))
    assert (cells["method"], cells["factor of the rate"]) == ("ailora", "3.1")
    assert cells["0.0001"].endswith("(1)")
    assert cells["0.01"].endswith("(1) *")
    assert "95 % jackknife" in table.notes[0]


def test_the_table_says_why_a_factor_is_unknown() -> None:
    table = table_of(summarize(compared(seeds=[0], learning_rate={"values": RATES[:2]})))
    assert dict(zip(table.columns, table.rows[0], strict=True))["factor of the rate"] == "unknown"
    assert table.notes[1] == "ailora: factor unknown, 2 shared rates with one seed, of 3 needed."


def test_the_chart_has_the_rates_and_last_the_best_ones() -> None:
    (chart,) = shared_rate_charts(compared())
    assert chart.x.categories == ("0.0001", "0.000316", "0.001", "0.00316", "0.01", "own best")
    (series,) = chart.series
    assert series.x == [0, 1, 2, 3, 4, 5]
    assert series.y == pytest.approx([0.075, 0.025, -0.025, -0.075, -0.125, 0.0], abs=1e-5)
    # One seed has no interval, five have.
    assert math.isnan(series.low[0])
    assert series.low[5] == pytest.approx(0, abs=1e-5)


def test_plain_data_has_every_rate_and_the_factor() -> None:
    data = json.loads(json.dumps(compared().to_dict()))
    shared = data["groups"][1]["against_baseline"]["shared_rates"]
    assert list(shared["rates"]) == [f"{rate:g}" for rate in RATES]
    assert shared["rates"]["0.01"]["position"] == "behind"
    assert shared["shift"]["factor"] == pytest.approx(10**0.5)
    assert shared["shift"]["interval"] is None


def test_methods_that_a_table_with_a_decimal_shows_as_equal_are_level() -> None:
    comparison = compared(factor=1, gain=0.0004)
    assert {*comparison.against_baseline[OURS].shared_rates.positions.values()} == {Position.LEVEL}
    assert summarize(comparison).shared_rates == []


def test_rates_too_small_to_learn_mislead_nobody() -> None:
    def result(spec: TrialSpec) -> Result:
        learned = 0.8 + (0.02 if spec.condition == OURS else 0)
        return outcome(0.5 if spec.learning_rate < 1e-3 else learned)

    design = make_design(learning_rate={"values": RATES}, seeds=[0])
    shared = compare(ran(design, result), design).against_baseline[OURS].shared_rates
    assert {*shared.positions.values()} == {Position.LEVEL, Position.AHEAD}
    assert not shared.misleads


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_very_few_seeds_do_not_hide_the_curves(seeds: int) -> None:
    """The t-interval of two seeds is thirteen times as wide as their standard error."""
    (chart,) = rate_charts(compared(seeds=list(range(seeds)), seeds_at="all"))
    assert [series.has_interval(0) for series in chart.series] == [seeds > 2] * 2
