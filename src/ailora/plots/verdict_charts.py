"""Charts of verdicts: forest plots of the differences to a study's baseline."""

from __future__ import annotations

from collections.abc import Iterator

from ailora.plots.chart_spec import ForestPlot, ForestRow
from ailora.plots.study_charts import chart_name, method_style
from ailora.studies.comparison import Comparison
from ailora.studies.trial import Condition
from ailora.studies.verdict_summary import describe_comparison
from ailora.studies.verdicts import StudyVerdict

#: Largest number of rows in a forest plot. More rows are only in the table of verdicts.
_MAX_FOREST_ROWS = 60


def forest_charts(comparison: Comparison) -> Iterator[ForestPlot]:
    """Chart the differences from the baseline with their verdicts, in a chart for each metric."""
    design = comparison.design
    # (Label of the metric, whether larger is better) -> conditions.
    by_metric: dict[tuple[str, bool], list[Condition]] = {}
    for condition, baseline_comparison in comparison.against_baseline.items():
        if baseline_comparison.difference is not None:
            key = design.metric_label(condition), design.larger_is_better(condition)
            by_metric.setdefault(key, []).append(condition)
    for (metric, larger_is_better), conditions in by_metric.items():
        # Longer charts would be unreadable. The table of verdicts has all rows.
        if len(conditions) > _MAX_FOREST_ROWS:
            continue
        methods = {condition.method for condition in conditions}
        subject = f"{next(iter(methods))} against {design.baseline}" if len(methods) == 1 else ""
        rows = tuple(_forest_row(comparison, condition, has_one_method=bool(subject)) for condition in conditions)
        shaded = "Shaded: the margin of equivalence. " if any(row.margin is not None for row in rows) else ""
        better = "larger" if larger_is_better else "smaller"
        yield ForestPlot(
            name=chart_name("verdicts", metric if len(by_metric) > 1 else ""),
            title=f"Verdicts: {subject}" if subject else f"Verdicts against {design.baseline}",
            x_label=f"difference of {metric}",
            rows=rows,
            caption=f"Each method minus {design.baseline}, each at its own best learning rate, paired by seed, with "
            f"the 95 % interval of the verdict; {better} is better. {shaded}Open markers: undecided.",
        )


def _forest_row(comparison: Comparison, condition: Condition, *, has_one_method: bool) -> ForestRow:
    """Return the row of a condition. If the chart has one method, the row is named after task and setting."""
    baseline_comparison = comparison.against_baseline[condition]
    baseline = comparison.design.baseline_for(condition)
    assert baseline_comparison.difference is not None
    estimate, judgement = baseline_comparison.difference.estimate, baseline_comparison.judgement
    verdict = baseline_comparison.verdict or ""
    return ForestRow(
        group="" if has_one_method else baseline.label,
        # In a study of a single task and setting, the baseline's label is empty.
        label=baseline.label if has_one_method and baseline.label else condition.method_label(baseline),
        value=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        margin=judgement.margin if judgement else None,
        verdict=verdict,
        is_decided=verdict != StudyVerdict.UNDECIDED,
        note=describe_comparison(baseline_comparison),
        style=method_style(comparison, condition),
    )
