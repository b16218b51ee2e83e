"""Summary of a comparison in sentences and tables, for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ailora.formatting import format_lr, format_number, truncate
from ailora.studies.choice_importance import (
    IMPORTANCE_COLUMNS,
    IMPORTANCE_NOTE,
    IMPORTANCE_TITLE,
    describe_importance,
    importance_rows,
)
from ailora.studies.comparison import Comparison
from ailora.studies.method_results import MethodResult
from ailora.studies.rate_certainty_summary import describe_uncertain_rates, rate_certainty_table
from ailora.studies.shared_rate_summary import shared_rate_sentences, shared_rate_table
from ailora.studies.summary_table import SummaryTable
from ailora.studies.trial import ONLY_TASK, Condition, Status
from ailora.studies.verdict_summary import (
    describe_decided,
    describe_effect_sizes,
    describe_outcomes,
    describe_overall,
    describe_rule,
    describe_undecided,
    format_estimate,
    verdict_table,
)

T = TypeVar("T")

_MISSING = "-"
_MAX_ERROR_CHARS = 200


@dataclass(frozen=True)
class StudySummary:
    """Results of a study in sentences and tables.

    Attributes:
        overall: Number of comparisons with each verdict.
        decided: Decided comparisons with their effect sizes and intervals; long lists are shortened.
        undecided: Number of seeds still needed by each undecided comparison; long lists are shortened.
        outcomes: Verdicts of the methods, a sentence for each task and setting.
        effect_sizes: Difference of each method from the baseline, a sentence for each task and setting.
        rule: Statistical rule behind the verdicts.
        uncertain_rates: Chosen learning rates with a small share of the resamples.
        shared_rates: Conclusions from a shared learning rate that the best rates do not confirm.
        importances: Share of the differences explained by each choice, a sentence for each task.
        progress: Number of done, failed, pruned and open trials.
        tables: Scores, verdicts, ranks, learning rates and their certainty, importance of choices, shared rates, time
            to the baseline's loss, cost and failures; empty tables are left out.
    """

    overall: list[str]
    decided: list[str]
    undecided: list[str]
    outcomes: list[str]
    effect_sizes: list[str]
    rule: str
    uncertain_rates: list[str]
    shared_rates: list[str]
    importances: list[str]
    progress: str
    tables: list[SummaryTable]

    @property
    def sentences(self) -> list[str]:
        """Short form: outcomes, undecided comparisons, uncertain and shared rates, importances, rule and progress."""
        sentences = [*self.outcomes, *self.undecided, *self.uncertain_rates, *self.shared_rates, *self.importances]
        return [*sentences, self.rule, self.progress]

    def to_markdown(self, title: str) -> str:
        """Render the short form and all tables as Markdown, below a title."""
        sentences = "\n".join(f"- {sentence}" for sentence in self.sentences)
        return "\n".join([f"## {title}", "", sentences, "", *(table.to_markdown() for table in self.tables)])


def summarize(comparison: Comparison) -> StudySummary:
    """Summarize a comparison in sentences and tables.

    Returns:
        The summary; empty tables are left out.
    """
    tables = [
        _score_table(comparison),
        verdict_table(comparison),
        _rank_table(comparison),
        *_curve_tables(comparison),
        rate_certainty_table(comparison),
        _importance_table(comparison),
        *(shared_rate_table(comparison, base, others) for base, others in comparison.by_baseline()),
        _good_range_table(comparison),
        _time_to_loss_table(comparison),
        _cost_table(comparison),
        _failure_table(comparison),
    ]
    return StudySummary(
        overall=describe_overall(comparison),
        decided=describe_decided(comparison),
        undecided=describe_undecided(comparison),
        outcomes=describe_outcomes(comparison),
        effect_sizes=describe_effect_sizes(comparison),
        rule=describe_rule(comparison),
        uncertain_rates=describe_uncertain_rates(comparison),
        shared_rates=shared_rate_sentences(comparison),
        importances=_describe_importances(comparison),
        progress=_progress(comparison),
        tables=[table for table in tables if table.rows],
    )


def _progress(comparison: Comparison) -> str:
    results = comparison.results.values()
    done, failed, pruned = (
        sum(result.status_counts[status] for result in results)
        for status in (Status.COMPLETE, Status.FAIL, Status.PRUNED)
    )
    n_open = sum(result.n_open for result in results)
    return f"{done} trials are done, {failed} failed, {pruned} were pruned, {n_open} are not run yet."


def _score_table(comparison: Comparison) -> SummaryTable:
    rows: list[list[str]] = []
    for condition, result in comparison.results.items():
        row = [
            *_condition_cells(condition),
            format_lr(result.search.best),
            str(len(result.at_best)),
            _format_optional(result.score, format_estimate),
        ]
        against = comparison.against_baseline.get(condition)
        if against is None:
            rows.append([*row, "baseline", "", ""])
            continue
        rows.append(
            [
                *row,
                _format_optional(against.difference, lambda difference: format_estimate(difference.estimate, "+")),
                _format_optional(against.bootstrap, lambda interval: f"[{interval.low:+.4f}, {interval.high:+.4f}]"),
                against.verdict or _MISSING,
            ]
        )
    columns = ["on", "method", "best rate", "seeds", "score", "minus baseline", "bootstrap", "verdict"]
    return SummaryTable("Scores", columns, rows, _score_notes(comparison), "scores")


def _score_notes(comparison: Comparison) -> list[str]:
    design = comparison.design
    metrics = sorted({design.metric_label(condition) for condition in comparison.results})
    interval = "sequential interval" if len(design.looks.counts) > 1 else "t-interval"
    note = (
        f"Score: mean over seeds of {', '.join(metrics)}, with its 95 % t-interval, at the learning rate that is best "
        f"on the validation split. Minus baseline: paired by seed, with its 95 % {interval}. Bootstrap: 95 % over "
        "seeds and examples, where predictions are kept; with few seeds it is too narrow."
    )
    others = [
        condition.method_label(base)
        for base, conditions in comparison.by_baseline()
        for condition in conditions
        if _has_other_seeds(comparison, base, condition)
    ]
    if not others:
        return [note]
    return [
        note,
        f"Minus baseline of {', '.join(dict.fromkeys(others))} is not the difference of the scores shown: it is over "
        "the seeds that have a score of both methods, up to the latest look.",
    ]


def _has_other_seeds(comparison: Comparison, base: Condition, condition: Condition) -> bool:
    """Return whether a difference is over other seeds than the scores of the method or of the baseline."""
    difference = comparison.against_baseline[condition].difference
    if difference is None:
        return False
    scored_seeds = comparison.results[base].scores.keys() | comparison.results[condition].scores.keys()
    return scored_seeds != {*difference.seeds}


def _rank_table(comparison: Comparison) -> SummaryTable:
    ranks = sorted(comparison.average_ranks.items(), key=lambda item: item[1])
    missing = [method for method in comparison.design.methods if method not in comparison.average_ranks]
    notes = [f"Not ranked, because a best rate is not yet known everywhere: {', '.join(missing)}."] if missing else []
    rows = [[method, f"{rank:.2f}"] for method, rank in ranks]
    return SummaryTable("Average rank", ["method", "rank"], rows, notes, "ranks")


def _curve_tables(comparison: Comparison) -> Iterator[SummaryTable]:
    for base, others in comparison.by_baseline():
        results = [comparison.results[condition] for condition in (base, *others)]
        rates = sorted({rate for result in results for rate in result.curve})
        yield SummaryTable(
            f"Validation {comparison.design.metric(base)} over learning rate"
            + (f", {base.label}" if base.label else ""),
            ["learning rate", *(result.condition.method_label(base) for result in results)],
            [[format_lr(rate), *(_curve_point(result, rate) for result in results)] for rate in rates],
            ["Mean over seeds, their number in brackets; * the best rate."],
            "rates",
        )


def _curve_point(result: MethodResult, rate: float) -> str:
    if rate not in result.curve:
        return ""
    point = result.curve[rate]
    return f"{format_number(point.mean)} ({point.n})" + (" *" if rate == result.search.best else "")


def _describe_importances(comparison: Comparison) -> list[str]:
    return [
        describe_importance(
            importances, "the differences between validation scores" + ("" if task == ONLY_TASK else f" on {task}")
        )
        for task, importances in comparison.importances.items()
    ]


def _importance_table(comparison: Comparison) -> SummaryTable:
    rows = [
        ["" if task == ONLY_TASK else task, *row]
        for task, importances in comparison.importances.items()
        for row in importance_rows(importances)
    ]
    notes = [f"Validation scores at all rates, each the mean over the seeds that ran at all of them. {IMPORTANCE_NOTE}"]
    return SummaryTable(IMPORTANCE_TITLE, ["on", *IMPORTANCE_COLUMNS], rows, notes, "importance")


def _good_range_table(comparison: Comparison) -> SummaryTable:
    rows = [
        [*_condition_cells(c), *map(format_lr, (good.low, good.best, good.high)), f"{good.decades:.1f}"]
        for c, result in comparison.results.items()
        if (good := result.good_range) is not None
    ]
    note = (
        "Rates around the best rate (the peak) whose mean validation score is within one point, or two standard "
        "errors, of the mean at the peak over the same selection seeds."
    )
    columns = ["on", "method", "from", "peak", "to", "decades"]
    return SummaryTable("Good learning rates", columns, rows, [note], "rates")


def _time_to_loss_table(comparison: Comparison) -> SummaryTable:
    rows = [
        [
            *_condition_cells(condition),
            f"{sum(evaluation.step is not None for evaluation in time.reached.values())} of {len(time.reached)}",
            "not reached" if time.share is None else f"{time.share:.2f}",
            _format_optional(time.seconds, "{:.0f}".format),
            {None: "not run", True: "yes", False: "no"}[time.confirmed],
        ]
        for condition, against in comparison.against_baseline.items()
        if (time := against.time_to_loss) is not None
    ]
    columns = ["on", "method", "seeds that reach it", "share of steps", "seconds", "confirmed"]
    note = (
        "The first evaluation at which a run's validation loss is at most the final one of the baseline's run with the "
        "same seed; medians over the seeds that reach it. Confirmed: runs whose schedule ends there reach it too."
    )
    return SummaryTable("Steps to the baseline's final loss", columns, rows, [note], "speed")


def _cost_table(comparison: Comparison) -> SummaryTable:
    rows = [
        [
            *_condition_cells(condition),
            _format_optional(result.mean("trainable_parameters"), "{:,.0f}".format),
            _format_optional(result.mean("init_seconds"), "{:.2f}".format),
            _format_optional(result.step_milliseconds, "{:.0f}".format),
            _format_optional(result.mean("peak_memory_bytes"), lambda size: f"{size / 2**20:,.0f}"),
            _format_optional(result.mean("adapter_bytes"), lambda size: f"{size / 2**10:,.0f}"),
            _format_optional(result.forgetting, "{:+.3f}".format),
        ]
        for condition, result in comparison.results.items()
        if result.at_best
    ]
    columns = ["on", "method", "trained", "init s", "ms a step", "peak MiB", "adapter KiB", "forgetting"]
    note = (
        "Means at the best rate. Init: loading the model included. A step: evaluations during training included. "
        "Forgetting: rise of the loss on general text, nats per token."
    )
    return SummaryTable("Cost", columns, rows, [note], "cost")


def _failure_table(comparison: Comparison) -> SummaryTable:
    rows = [
        [*_condition_cells(condition), truncate(" ".join(error.split()), _MAX_ERROR_CHARS)]
        for condition, result in comparison.results.items()
        for error in result.errors
    ]
    return SummaryTable("Failed trials", ["on", "method", "learning rate, seed: error"], rows, topic="failures")


def _condition_cells(condition: Condition) -> tuple[str, str]:
    return condition.label, condition.method


def _format_optional(value: T | None, format_value: Callable[[T], str]) -> str:
    return _MISSING if value is None else format_value(value)
