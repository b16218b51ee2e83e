"""Sentences and tables about shared learning rates: misleading rates, and the rate factor behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ailora.formatting import format_alike, format_interval, format_lr, join_names, limit_sentences
from ailora.studies.comparison import BaselineComparison, Comparison
from ailora.studies.rate_shift import RateShift
from ailora.studies.shared_rate import Position, SharedRates
from ailora.studies.summary_table import SummaryTable
from ailora.studies.trial import Condition

_UNKNOWN = "unknown"
_POSITION_WORDS = {Position.AHEAD: "ahead of", Position.BEHIND: "behind", Position.LEVEL: "level with"}


def shared_rate_sentences(comparison: Comparison) -> list[str]:
    """Describe the methods for which a shared rate is misleading."""
    sentences = [
        _describe_misleading_rates(base, condition, comparison.against_baseline[condition])
        for base, others in comparison.by_baseline()
        for condition in others
        if comparison.against_baseline[condition].shared_rates.misleads
    ]
    return limit_sentences(sentences, "the tables of shared rates")


def shared_rate_table(comparison: Comparison, base: Condition, others: Sequence[Condition]) -> SummaryTable:
    """Build the table for a task and setting, with a row for each method.

    Args:
        comparison: The comparison.
        base: Condition of the baseline.
        others: Conditions compared with the baseline. Those without a shared rate have no row.

    Returns:
        The table.
    """
    compared = {c: against for c in others if (against := comparison.against_baseline[c]).shared_rates.differences}
    rates = sorted({rate for against in compared.values() for rate in against.shared_rates.differences})
    rows = [
        [
            condition.method_label(base),
            *_difference_cells(against, rates),
            format_factor(against.shared_rates.shift),
            _distances(against.shared_rates.shift),
        ]
        for condition, against in compared.items()
    ]
    columns = ["method", *map(format_lr, rates), "own best", "factor of the rate", "curves apart"]
    reasons = [
        f"{c.method_label(base)}: factor unknown, {against.shared_rates.shift.reason}."
        for c, against in compared.items()
        if against.shared_rates.shift.factor is None
    ]
    note = (
        f"Difference of {comparison.design.metric_label(base)} to {base.method} at each shared learning rate, paired "
        "by seed, the number of seeds in brackets; * another conclusion than with each at its own best rate. Factor: "
        f"{base.method} at this multiple of the rate has the validation curve of the method, with the 95 % jackknife "
        "interval over seeds. Apart: root mean square difference of the two curves before and after the shift."
    )
    title = "At one shared rate" + (f", {base.label}" if base.label else "")
    return SummaryTable(title, columns, rows, [note, *reasons], "shared rates")


def format_factor(shift: RateShift) -> str:
    """Format the factor with its interval over seeds, `1.9 [1.5, 2.4]`."""
    if shift.factor is None:
        return _UNKNOWN
    if shift.low is None or shift.high is None:
        return _format_multiple(shift.factor)
    return f"{_format_multiple(shift.factor)} [{_format_multiple(shift.low)}, {_format_multiple(shift.high)}]"


def _format_multiple(value: float) -> str:
    return f"{value:.1f}" if 1 <= value < 100 else f"{value:.2g}"


def _describe_misleading_rates(base: Condition, condition: Condition, against: BaselineComparison) -> str:
    # A shared rate is misleading only if there is a difference at the best rates that contradicts it.
    assert against.difference is not None
    method, shared = condition.method_label(base), against.shared_rates
    assert shared.at_best is not None
    at_best = against.difference.estimate
    interval_at_best = format_interval(at_best.mean, at_best.low, at_best.high, "+")
    start = f"{base.sentence_prefix}at" if base.label else "At"
    return (
        f"{start} one shared rate you would have concluded that {method} is "
        f"{join_names(_describe_positions(shared, base.method))}; each at its own best rate, {method} is "
        f"{_POSITION_WORDS[shared.at_best]} {base.method} ({interval_at_best}, "
        f"{against.verdict}).{_shift_sentence(shared.shift, base.method, method)}"
    )


def _describe_positions(shared: SharedRates, baseline: str) -> Iterator[str]:
    """Describe each position with its rates, and the differences of smallest and largest size."""
    means = {rate: difference.estimate.mean for rate, difference in shared.differences.items()}
    texts = dict(zip(means, format_alike([*means.values()], "+"), strict=True))
    for position, word in _POSITION_WORDS.items():
        rates = [rate for rate, rate_position in shared.positions.items() if rate_position is position]
        if rates:
            by_size = sorted(rates, key=lambda rate: abs(means[rate]))
            ends = dict.fromkeys((texts[by_size[0]], texts[by_size[-1]]))
            yield f"{word} {baseline} at {join_names(map(format_lr, rates))} ({' to '.join(ends)})"


def _shift_sentence(shift: RateShift, baseline: str, method: str) -> str:
    # The notes of the table give the reason for an unknown factor.
    if shift.factor is None:
        return ""
    nearest = f" The curve of {method} is nearest to that of {baseline} at {format_factor(shift)} times the rate"
    if shift.rms_before is None or shift.rms_after is None:
        return f"{nearest}."
    before, after = format_alike((shift.rms_before, shift.rms_after))
    return f"{nearest}: {after} apart there, {before} at the same rate."


def _difference_cells(against: BaselineComparison, rates: Sequence[float]) -> list[str]:
    """Format the differences at the shared rates, followed by the difference at the best rates."""
    shared = against.shared_rates
    means = [difference.estimate.mean for difference in shared.differences.values()]
    at_best = [] if against.difference is None else [against.difference.estimate.mean]
    texts = format_alike([*means, *at_best], "+")
    # The last text belongs to the best rates.
    cells = {
        rate: f"{text} ({len(difference.seeds)}){' *' if shared.misleads_at(rate) else ''}"
        for text, (rate, difference) in zip(texts, shared.differences.items(), strict=False)
    }
    return [*(cells.get(rate, "") for rate in rates), f"{texts[-1]} ({against.verdict})" if at_best else "-"]


def _distances(shift: RateShift) -> str:
    distances = format_alike([rms for rms in (shift.rms_before, shift.rms_after) if rms is not None])
    return ", then ".join(distances) or "-"
