"""Certainty of the chosen learning rates, as sentences and a table."""

from __future__ import annotations

from ailora.formatting import capitalize, format_lr, format_percent, join_names, limit_sentences, pluralize
from ailora.studies.comparison import Comparison
from ailora.studies.rate_certainty import RateCertainty
from ailora.studies.summary_table import SummaryTable
from ailora.studies.trial import Condition

#: Share of the resamples below which a choice is called uncertain.
_MIN_SHARE = 0.8
#: Share below which a sentence leaves a rate out.
_MIN_NAMED_SHARE = 0.05
_TITLE = "Certainty of the rates"


def describe_uncertain_rates(comparison: Comparison) -> list[str]:
    """Describe chosen rates with a share of resamples below 80 %, and count the rates of unknown certainty."""
    certainties = comparison.rate_certainties
    sentences = [
        _format_uncertain_rate(condition, certainty)
        for condition, certainty in certainties.items()
        if certainty.share_of_best is not None and certainty.share_of_best < _MIN_SHARE
    ]
    n_unknown = sum(certainty.resampled is None for certainty in certainties.values())
    unknown = (
        f"The certainty of {pluralize(n_unknown, 'chosen learning rate')} is unknown: a single seed chose, and no "
        "validation predictions are read."
    )
    return [*limit_sentences(sentences, f'the table "{_TITLE}"'), *([unknown] if n_unknown else [])]


def rate_certainty_table(comparison: Comparison) -> SummaryTable:
    """Build the table of the chosen rates. A rate of unknown certainty has no row."""
    rows = [
        [
            condition.label,
            condition.method,
            format_lr(certainty.best),
            format_percent(certainty.share_of_best),
            _format_other_rates(certainty),
            str(certainty.resampled),
        ]
        for condition, certainty in comparison.rate_certainties.items()
        if certainty.share_of_best is not None
    ]
    note = (
        "Share of the resamples in which the rate has the best validation score, among the rates with runs of all "
        "selection seeds. A resample draws seeds with replacement, and validation examples where predictions are "
        "stored, the same for all rates. With few seeds, shares are too near 0 and 100 %."
    )
    columns = ["on", "method", "chosen rate", "share", "other rates", "resampled"]
    return SummaryTable(_TITLE, columns, rows, notes=[note], topic="rates")


def _format_uncertain_rate(condition: Condition, certainty: RateCertainty) -> str:
    ranked = certainty.ranked_shares
    # Among many rates, even the most frequent choice may have a share below the limit. Then name this choice alone.
    likely = [(rate, share) for rate, share in ranked if share >= _MIN_NAMED_SHARE] or ranked[:1]
    named = [f"{format_lr(rate)} in {format_percent(share)}" for rate, share in likely]
    named[0] += " of resamples"
    sentence = f"{condition.sentence_prefix}the rate of {condition.method} is uncertain: {join_names(named)}"
    return f"{capitalize(sentence)}."


def _format_other_rates(certainty: RateCertainty) -> str:
    parts = [
        f"{format_lr(rate)} {format_percent(share)}"
        for rate, share in certainty.ranked_shares
        if rate != certainty.best and share > 0
    ]
    return ", ".join(parts) or "-"
