"""Section on the search behind a run of `ailora tune`: candidates, certainty, importance of each choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ailora.formatting import format_lr, format_value
from ailora.plots.search_charts import candidate_chart
from ailora.report.document import Block, Charts, Paragraphs, ReportTable
from ailora.studies.choice_importance import (
    IMPORTANCE_COLUMNS,
    IMPORTANCE_NOTE,
    IMPORTANCE_TITLE,
    Importance,
    importance_rows,
)


def search_blocks(search: Mapping[str, object]) -> Iterator[Block]:
    """Build the blocks of a search, without missing or damaged parts.

    Args:
        search: Content of `tune.json`; empty for a run without a search.

    Yields:
        The sentences, the chart and the tables of the search.
    """
    candidates, rungs = _records(search.get("candidates")), _records(search.get("rungs"))
    # Files of earlier versions name no metric for a rung, because the goal ranked the candidates of all rungs.
    metric_by_step = {
        step: str(rung.get("metric", search.get("goal"))) for rung in rungs if isinstance(step := rung.get("step"), int)
    }
    if not candidates or not metric_by_step:
        return
    first_step = next(iter(metric_by_step))
    sentences = search.get("sentences")
    yield Paragraphs(tuple(map(str, sentences)) if isinstance(sentences, list) else ())
    yield Charts(tuple(candidate_chart(candidates, first_step, metric=metric_by_step[first_step])))
    if importances := [i for record in _records(search.get("importances")) if (i := Importance.from_dict(record))]:
        yield _importance_table(importances, first_step, metric_by_step[first_step])
    yield _candidate_table(candidates, metric_by_step)


def _candidate_table(candidates: Sequence[Mapping[str, object]], metric_by_step: Mapping[int, str]) -> ReportTable:
    rows: list[tuple[str, ...]] = []
    for candidate in candidates:
        values = candidate.get("values")
        values_by_step = values if isinstance(values, dict) else {}
        roles = format_value(candidate.get("roles"))
        settings = (format_value(candidate.get("policy")), roles, format_value(candidate.get("rank")))
        # Keys of JSON are strings.
        value_cells = (format_value(values_by_step.get(str(step))) for step in metric_by_step)
        parameters = format_value(candidate.get("trainable_parameters"))
        error = format_value(candidate.get("error"))
        rows.append((*settings, format_lr(candidate.get("learning_rate")), parameters, *value_cells, error))
    headings = (f"{metric.replace('_', ' ')}, step {step:,}" for step, metric in metric_by_step.items())
    columns = ("init", "roles", "rank", "learning rate", "parameters", *headings, "error")
    notes = ("A candidate without a value was dropped before that step.",)
    return ReportTable("Candidates, on the validation data", columns, tuple(rows), notes)


def _importance_table(importances: Sequence[Importance], step: int, metric: str) -> ReportTable:
    notes = (f"Differences in {metric.replace('_', ' ')} at step {step:,}. {IMPORTANCE_NOTE}",)
    return ReportTable(IMPORTANCE_TITLE, IMPORTANCE_COLUMNS, tuple(importance_rows(importances)), notes)


def _records(value: object) -> list[Mapping[str, object]]:
    """Return the objects in a JSON list; empty if the value is missing or not a list."""
    return [record for record in value if isinstance(record, dict)] if isinstance(value, list) else []
