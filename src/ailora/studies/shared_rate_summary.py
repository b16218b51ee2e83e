"""Shared learning rates in sentences and tables: conclusions from one rate, and the factor that explains them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ailora.formatting import format_interval, format_lr, format_number, join_names, limit_sentences
from ailora.studies.comparison import BaselineComparison, Comparison
from ailora.studies.rate_shift import RateShift
from ailora.studies.shared_rate import Position, SharedRates
from ailora.studies.trial import Condition

_UNKNOWN = "unknown"
_WORDS = {Position.AHEAD: "ahead of", Position.BEHIND: "behind", Position.LEVEL: "level with"}


def shared_rate_sentences(comparison: Comparison) -> list[str]:
    """Describe the methods that are ahead or behind at a shared rate, and not at the own best rates."""
    sentences = [
        _sentence(base, condition, comparison.against_baseline[condition])
        for base, others in comparison.by_baseline()
        for condition in others
        if comparison.against_baseline[condition].shared_rates.misleads
    ]
    return limit_sentences(sentences, "the tables of shared rates")


def shared_rate_rows(
    comparison: Comparison, base: Condition, others: Sequence[Condition]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the columns, rows and notes of the table of a task and setting, a row for each method.

    Args:
        comparison: the comparison.
        base: condition of the baseline.
        others: conditions compared with it. Without a rate that the baseline ran, a condition has no row.
    """
    compared = {c: against for c in others if (against := comparison.against_baseline[c]).shared_rates.differences}
    rates = sorted({rate for against in compared.values() for rate in against.shared_rates.differences})
    rows = [
        [
            condition.method_label(base),
            *(_cell(against.shared_rates, rate) for rate in rates),
            _at_best(against),
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
    return columns, rows, [note, *reasons]


def format_factor(shift: RateShift) -> str:
    """Format the factor with its interval over seeds, `1.9 [1.5, 2.4]`."""
    if shift.factor is None:
        return _UNKNOWN
    if shift.low is None or shift.high is None:
        return _format_multiple(shift.factor)
    return f"{_format_multiple(shift.factor)} [{_format_multiple(shift.low)}, {_format_multiple(shift.high)}]"


def _format_multiple(value: float) -> str:
    return f"{value:.1f}" if 1 <= value < 100 else f"{value:.2g}"


def _sentence(base: Condition, condition: Condition, against: BaselineComparison) -> str:
    assert against.difference is not None
    method, best, shared = condition.method_label(base), against.difference.estimate, against.shared_rates
    assert shared.at_best is not None
    start = f"{base.sentence_prefix}at" if base.label else "At"
    return (
        f"{start} one shared rate you would have concluded that {method} is "
        f"{join_names(_groups(shared, base.method))}; each at its own best rate, {method} is "
        f"{_WORDS[shared.at_best]} {base.method} ({format_interval(best.mean, best.low, best.high, '+')}, "
        f"{against.verdict}).{_shift_sentence(shared.shift, base.method, method)}"
    )


def _groups(shared: SharedRates, baseline: str) -> Iterator[str]:
    """Describe the rates of each position, with the smallest and the largest difference."""
    for position, word in _WORDS.items():
        rates = [rate for rate, of_rate in shared.positions.items() if of_rate is position]
        if rates:
            means = sorted((shared.differences[rate].estimate.mean for rate in rates), key=abs)
            ends = dict.fromkeys(format_number(mean, "+") for mean in (means[0], means[-1]))
            yield f"{word} {baseline} at {join_names(map(format_lr, rates))} ({' to '.join(ends)})"


def _shift_sentence(shift: RateShift, baseline: str, method: str) -> str:
    # Why a factor is unknown stands below the table.
    if shift.factor is None:
        return ""
    nearest = f" The curve of {method} is nearest to that of {baseline} at {format_factor(shift)} times the rate"
    if shift.rms_before is None or shift.rms_after is None:
        return f"{nearest}."
    before, after = map(format_number, (shift.rms_before, shift.rms_after))
    return f"{nearest}: {after} apart there, {before} at the same rate."


def _cell(shared: SharedRates, rate: float) -> str:
    if rate not in shared.differences:
        return ""
    difference = shared.differences[rate]
    mark = " *" if shared.misleads_at(rate) else ""
    return f"{format_number(difference.estimate.mean, '+')} ({len(difference.seeds)}){mark}"


def _at_best(against: BaselineComparison) -> str:
    if against.difference is None:
        return "-"
    return f"{format_number(against.difference.estimate.mean, '+')} ({against.verdict})"


def _distances(shift: RateShift) -> str:
    distances = [format_number(rms) for rms in (shift.rms_before, shift.rms_after) if rms is not None]
    return ", then ".join(distances) or "-"
