"""Verdicts of a comparison as sentences and a table, with effect sizes and numbers of missing seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ailora.formatting import capitalize, format_interval, join_names, limit_sentences, pluralize
from ailora.studies.comparison import BaselineComparison, Comparison
from ailora.studies.method_results import MethodResult
from ailora.studies.statistics import Estimate
from ailora.studies.summary_table import SummaryTable
from ailora.studies.trial import Condition
from ailora.studies.verdicts import ALPHA, StudyVerdict

#: Phrase for the table with the content of all sentences.
_TABLE = "the table of verdicts"
#: Decided verdict -> relation to the baseline, from best to worst.
_RELATIONS = {
    "better": "better than",
    "better and equivalent": "better than and equivalent to",
    "worse": "worse than",
    "worse and equivalent": "worse than and equivalent to",
    "equivalent": "equivalent to",
}


def describe_overall(comparison: Comparison) -> list[str]:
    """Describe how many comparisons have each verdict."""
    baseline = comparison.design.baseline
    counts = Counter(against.verdict for against in _paired_comparisons(comparison).values())
    if not counts:
        return [f"No method has been compared with the baseline {baseline} yet."]
    total = counts.total()
    comparisons = f"{pluralize(total, 'comparison')} with the baseline {baseline}"
    if len(counts) == 1:
        verdict = next(iter(counts))
        return (
            [f"The only comparison with the baseline {baseline} is {verdict}."]
            if total == 1
            else [f"All {comparisons} are {verdict}."]
        )
    parts = [
        f"{number} {'is' if number == 1 else 'are'} {verdict}"
        for verdict in (*_RELATIONS, StudyVerdict.UNDECIDED)
        if (number := counts[verdict])
    ]
    return [f"Of {comparisons}, {join_names(parts)}."]


def describe_decided(comparison: Comparison) -> list[str]:
    """Describe each decided comparison with its effect size, better methods first. Long lists are shortened."""
    decided = [
        condition
        for verdict in _RELATIONS
        for condition, against in _paired_comparisons(comparison).items()
        if against.verdict == verdict
    ]
    return limit_sentences([_describe_decided_result(comparison, condition) for condition in decided], _TABLE)


def describe_undecided(comparison: Comparison) -> list[str]:
    """Describe how many seeds each undecided comparison still needs. Long lists are shortened."""
    undecided = [
        condition
        for condition, against in _paired_comparisons(comparison).items()
        if against.verdict == StudyVerdict.UNDECIDED
    ]
    return limit_sentences([_describe_undecided_result(comparison, condition) for condition in undecided], _TABLE)


def describe_outcomes(comparison: Comparison) -> list[str]:
    """Describe the verdicts of the methods, a sentence for each task and setting."""
    return [_describe_outcome(comparison, base, others) for base, others in comparison.by_baseline()]


def describe_effect_sizes(comparison: Comparison) -> list[str]:
    """Describe the difference of each method from the baseline, a sentence for each task and setting."""
    sentences = []
    for base, others in comparison.by_baseline():
        effects = [
            f"{condition.method} {format_estimate(against.difference.estimate, '+')} ({against.verdict})"
            for condition in others
            if (against := comparison.against_baseline[condition]).difference is not None
        ]
        if effects:
            place = f"{base.label}: " if base.label else ""
            metric = comparison.design.metric_label(base)
            sentences.append(f"{place}{metric} minus that of {base.method}: {'; '.join(effects)}.")
    return sentences


def describe_rule(comparison: Comparison) -> str:
    """Describe the statistical rule behind the verdicts."""
    design, looks = comparison.design, comparison.design.looks.counts
    unjudged = sorted({design.metric(c) for c in comparison.against_baseline if design.margin(c) is None})
    equivalence = (
        f"Equivalence is not judged for {join_names(unjudged)}: the study sets no margin. "
        if unjudged
        else "Equivalent: two one-sided t-tests (TOST) show a difference within the margin. "
    )
    at_looks = (
        f"The looks are at {join_names(map(str, looks))} seeds, with O'Brien-Fleming boundaries and sequential p. "
        if len(looks) > 1
        else ""
    )
    return (
        f"Better or worse: a paired t-test over seeds shows a difference. {equivalence}Undecided: neither, "
        f"which is not equality. {at_looks}A difference or an equivalence counts as shown if its p is below {ALPHA} "
        f"after Holm's correction over a family of {comparison.family_size} comparisons, which is applied to "
        "differences and equivalences separately. "
        "Verdicts speak of seeds on this test set; the bootstrap draws examples too."
    )


def verdict_table(comparison: Comparison) -> SummaryTable:
    """Build the table of verdicts; only judged comparisons have a row."""
    columns = ["on", "method", "seeds", "verdict", "p", "equivalence p", "margin", "equivalent within", "more seeds"]
    rows = [
        [
            condition.label,
            condition.method,
            str(judged.difference.n),
            str(judged),
            _format_p_value(judged.adjusted_p),
            _format_p_value(judged.adjusted_equivalence_p),
            "-" if judged.margin is None else f"{judged.margin:.3g}",
            "-" if judged.smallest_margin is None else f"{judged.smallest_margin:.3g}",
            "-" if judged.missing_seeds is None else _format_missing_seeds(judged.missing_seeds),
        ]
        for condition, against in comparison.against_baseline.items()
        if (judged := against.judgement) is not None and judged.p_value is not None
    ]
    note = (
        "p: for a difference, and for equivalence within the margin, both after Holm's correction. Equivalent within: "
        "the smallest margin at which equivalence is shown. More seeds: the number that would show the equivalence of "
        "equal methods with a power of 80 %, from the 80 % interval of the spread over seeds."
    )
    notes = [note]
    judgements = [against.judgement for against in _paired_comparisons(comparison).values() if against.judgement]
    if any(judgement.n_failed or judgement.n_baseline_failed for judgement in judgements):
        notes.append("A verdict needs the scores of the favoured side at all seeds, whatever its p.")
    return SummaryTable("Verdicts", columns, rows, notes, "scores")


def describe_comparison(against: BaselineComparison) -> str:
    """Describe a comparison with the baseline by its verdict, number of seeds and p-value."""
    if against.difference is None:
        return "no seed in common with the baseline"
    text = f"{against.verdict}; {pluralize(len(against.difference.seeds), 'seed')}{_describe_evidence(against, '; ')}"
    judged = against.judgement
    if judged and judged.n_failed:
        text += f"; {judged.n_failed} of {judged.look} failed"
    if judged and judged.n_baseline_failed:
        text += f"; {judged.n_baseline_failed} of {judged.look} failed for the baseline"
    return text


def format_estimate(estimate: Estimate, sign: str = "") -> str:
    """Format a mean with its 95 % interval; the mean alone if there is no interval."""
    return format_interval(estimate.mean, estimate.low, estimate.high, sign)


def _paired_comparisons(comparison: Comparison) -> dict[Condition, BaselineComparison]:
    """Return the comparisons whose method shares seeds with the baseline."""
    return {c: against for c, against in comparison.against_baseline.items() if against.difference is not None}


def _describe_decided_result(comparison: Comparison, condition: Condition) -> str:
    against, design = comparison.against_baseline[condition], comparison.design
    assert against.difference is not None
    relation = _RELATIONS[str(against.verdict)]
    seeds = f"{pluralize(len(against.difference.seeds), 'seed')}{_describe_evidence(against, ', ')}"
    return (
        f"{condition.sentence_prefix}{condition.method} is {relation} the baseline {design.baseline}: "
        f"{format_estimate(against.difference.estimate, '+')} {design.metric(condition)} (95 % interval over {seeds})"
        f"{''.join(f'; {failure}' for failure in _describe_failures(comparison, [condition]))}."
    )


def _describe_undecided_result(comparison: Comparison, condition: Condition) -> str:
    """Describe the number of missing seeds, and the smallest margin at which equivalence is shown."""
    against, design = comparison.against_baseline[condition], comparison.design
    assert against.difference is not None
    seeds = pluralize(len(against.difference.seeds), "seed")
    text = f"{condition.sentence_prefix}{condition.method} is undecided after {seeds}"
    judged = against.judgement
    if judged is None:
        return f"{text}: it is judged at {join_names(map(str, design.looks.counts))} seeds of both methods."
    looks = design.looks.counts
    later = [look for look in looks if look > judged.look]
    if judged.is_final:
        text += ", and stays so, because seeds of both sides failed"
    elif len(looks) > 1:
        text += f" (the next look is at {later[0]})" if later else ", the last look"
    parts = _describe_failures(comparison, [condition])
    if judged.p_value is None:
        parts.append("a test needs at least two seeds")
    if judged.missing_seeds is not None and judged.margin is not None:
        parts.append(
            f"{_describe_missing_seeds(judged.missing_seeds)} would show equivalence within "
            f"{_format_margin(comparison, judged.margin)} if the methods are equal"
        )
    if judged.smallest_margin is not None:
        parts.append(f"so far it is equivalent within {judged.smallest_margin:.3g}")
    if judged.p_value is not None and judged.difference.low is None:
        parts.append("its differences are all equal, so the spread over seeds is unknown")
    return f"{text}: {'; '.join(parts)}." if parts else f"{text}."


def _format_margin(comparison: Comparison, margin: float) -> str:
    share = comparison.design.config.margin
    return f"{margin:.3g}" + (f" ({share} of the baseline)" if isinstance(share, str) else "")


def _format_missing_seeds(numbers: tuple[int, int | None]) -> str:
    low, high = numbers
    if high is None:
        return f"more than {low:,}"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _describe_missing_seeds(numbers: tuple[int, int | None]) -> str:
    low, high = numbers
    if low == high:
        return f"about {pluralize(low, 'more seed')}"
    return f"{_format_missing_seeds(numbers) if high is None else f'between {low:,} and {high:,}'} more seeds"


def _describe_outcome(comparison: Comparison, base: Condition, others: Sequence[Condition]) -> str:
    methods_by_verdict: dict[str, list[str]] = {}
    unpaired: dict[str, list[str]] = {}
    for condition in others:
        label = _quote_commas(condition.method_label(base))
        verdict = comparison.against_baseline[condition].verdict
        if verdict is None:
            unpaired.setdefault(_reason_without_pair(comparison.results[condition]), []).append(label)
        else:
            methods_by_verdict.setdefault(verdict, []).append(label)
    parts = [
        f"{join_names(labels)} {'is' if len(labels) == 1 else 'are'} {verdict}"
        for verdict in (*_RELATIONS, StudyVerdict.UNDECIDED)
        if (labels := methods_by_verdict.get(verdict))
    ]
    for reason in ("no seed in common", "no best rate yet", "not run yet"):
        if labels := unpaired.get(reason):
            parts.append(f"{join_names(labels)} {'has' if len(labels) == 1 else 'have'} {reason}")
    parts += _describe_failures(comparison, others)
    score, design = comparison.results[base].score, comparison.design
    baseline_score = (
        f" ({design.metric(base)} {format_estimate(score)} on the {design.report_split(base)} split)" if score else ""
    )
    outcomes = "; ".join(parts) or "no method is compared"
    return capitalize(
        f"{base.sentence_prefix}against the baseline {_quote_commas(base.method)}{baseline_score}: {outcomes}."
    )


def _reason_without_pair(result: MethodResult) -> str:
    if result.score is not None or result.search.ended:
        return "no seed in common"
    return "no best rate yet" if result.runs else "not run yet"


def _describe_failures(comparison: Comparison, conditions: Sequence[Condition]) -> list[str]:
    """Describe the failed seeds of methods and of their baseline, up to the latest look of each."""
    # Label -> number of seeds at the latest look, and number of these that failed.
    counts: dict[str, tuple[int, int]] = {}
    for condition in conditions:
        judgement = comparison.against_baseline[condition].judgement
        if judgement is None:
            continue
        base = comparison.design.baseline_for(condition)
        counts[condition.method_label(base)] = judgement.look, judgement.n_failed
        # Methods may be at different looks. The latest of these looks includes all failed seeds of the baseline.
        baseline_counts = judgement.look, judgement.n_baseline_failed
        counts[base.method] = max(counts.get(base.method, baseline_counts), baseline_counts)
    return [
        f"{failed} of {look} seeds of {_quote_commas(label)} failed at its chosen rate"
        for label, (look, failed) in counts.items()
        if failed
    ]


def _quote_commas(label: str) -> str:
    """Quote a label with a comma, which would look like several methods in a sentence."""
    return f'"{label}"' if "," in label else label


def _describe_evidence(against: BaselineComparison, separator: str) -> str:
    """Describe the p-value behind the verdict: for equivalence if it is `equivalent`, else for a difference."""
    judged = against.judgement
    if judged is None or judged.adjusted_p is None:
        return ""
    if judged.verdict is StudyVerdict.EQUIVALENT:
        return f"{separator}equivalence p {_format_p_value(judged.adjusted_equivalence_p)} after Holm's correction"
    return f"{separator}p {_format_p_value(judged.adjusted_p)} after Holm's correction"


def _format_p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"
