"""Chapter of a study: summary, charts, tables, and the instructions to run the study again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ailora.formatting import format_lr, format_value, is_finite, shorten
from ailora.library_versions import library_versions
from ailora.plots import study_charts
from ailora.plots.chart_spec import Chart
from ailora.plots.verdict_charts import forest_charts
from ailora.recipes.config.yaml_file import format_yaml
from ailora.redaction import without_secrets
from ailora.report.document import (
    MISSING,
    Block,
    Chapter,
    Charts,
    Code,
    KeyValues,
    Note,
    Paragraphs,
    ReportTable,
    section,
    sections,
)
from ailora.report.init_pair_heatmap import init_pair_heatmaps
from ailora.report.report_settings import settings_blocks
from ailora.report.trial_selection import TrialSelection, select_trials
from ailora.report.versions import version_table
from ailora.studies.choice_importance import IMPORTANCE_TITLE
from ailora.studies.comparison import Comparison, compare
from ailora.studies.study_config import SequentialSeeds
from ailora.studies.study_design import StudyDesign
from ailora.studies.summary import StudySummary, summarize
from ailora.studies.summary_table import SummaryTable
from ailora.studies.trial import Status, Trial, TrialSpec

#: Columns to hide in the table of trials if all trials have the same value.
_HIDDEN_COLUMNS = (
    "task",
    "max_steps",
    "attempts",
    "error",
    "steps",
    "trainable_parameters",
    "total_parameters",
    "folder",
)
_EXCLUDED_NOTE = (
    "On a task and setting, a learning rate cannot become a method's best rate if a trial at this rate, with one of "
    "the seeds that choose the rates, failed or was pruned. Trials with later or extra seeds do not exclude a rate."
)
_MAX_ERROR_CHARS = 2000
_MAX_CELL_CHARS = 160
#: Maximum length of a list of sentences to show open; a longer list is closed at first.
_MAX_OPEN_SENTENCES = 8
#: Maximum number of score charts. If there are more, and the grid varies a number such as the rank, charts of the
#: score over this number replace them.
_MAX_SCORE_CHARTS = 2


def study_chapter(
    name: str, study: Mapping[str, Any], trials: Sequence[Trial], design: StudyDesign, *, bootstrap: bool
) -> Chapter:
    """Build the chapter of a study.

    Args:
        name: Name of the study.
        study: Content of the study file, as stored with the trials.
        trials: All trials of the storage.
        design: The design of the study.
        bootstrap: Whether to resample examples, from stored predictions.

    Returns:
        The chapter, with the summary first.
    """
    selection = select_trials(trials, design)
    comparison = compare(selection.trials, design, bootstrap=bootstrap)
    summary = summarize(comparison)
    score_charts = _score_charts(comparison)
    varied = section("Ranks and other settings", _charts(study_charts.varied_charts(comparison)))
    scores = section("Scores", score_charts, *_tables(summary, "scores", "ranks"))
    rates, curves = study_charts.rate_charts(comparison), study_charts.convergence_charts(comparison)
    shared = study_charts.shared_rate_charts(comparison)
    return Chapter(
        title=name,
        kind="study",
        sections=sections(
            section("Summary", *_summary(summary, design, selection, _charts(forest_charts(comparison)))),
            # Put charts before tables: without score charts, the section of scores has only tables.
            *([scores, varied] if score_charts.charts else [varied, scores]),
            section("Which init for which role", _charts(init_pair_heatmaps(comparison))),
            section("Learning rates", _charts(rates), *_tables(summary, "rates", collapsed=True)),
            section(IMPORTANCE_TITLE, Paragraphs(tuple(summary.importances)), *_tables(summary, "importance")),
            section("At one shared rate", _charts(shared), *_tables(summary, "shared rates")),
            section("Convergence", _charts(curves), *_tables(summary, "speed")),
            section("Cost", _charts(study_charts.cost_charts(comparison)), *_tables(summary, "cost")),
            section("Failed, pruned and missing trials", *_trials_without_score(selection.trials, design)),
            section("All trials", _trial_table(selection.trials, design)),
            section("Settings", *_settings(design)),
            section("Run it again", *_instructions(study)),
        ),
    )


def _charts(charts: Iterable[Chart]) -> Charts:
    return Charts(tuple(charts))


def _summary(summary: StudySummary, design: StudyDesign, selection: TrialSelection, verdicts: Charts) -> list[Block]:
    blocks: list[Block] = [Note(note) for note in selection.notes]
    done = sum(trial.status is Status.COMPLETE for trial in selection.trials)
    # Trials enter the storage in steps: only the results of the first seed tell which trials the next seeds require.
    specs = {trial.spec for trial in selection.trials} | {*design.required_trials(selection.trials)}
    if not done:
        blocks.append(Note("No trial of this study has finished: there is nothing to compare yet.", "error"))
    pairs = {
        "baseline": design.baseline,
        "methods": str(len(design.methods)),
        "tasks": str(len({condition.task for condition in design.conditions})),
        "decided by": ", ".join(sorted({design.metric(condition) for condition in design.conditions})),
        "seeds": _describe_seeds(design, selection.trials),
        "trials done": f"{done:,} of {len(specs):,}",
    }
    details = (*summary.outcomes, *summary.effect_sizes)
    heading = f"Task by task: {len(details)} sentences" if len(details) > _MAX_OPEN_SENTENCES else ""
    return [
        *blocks,
        KeyValues(tuple(pairs.items())),
        Paragraphs(tuple(summary.overall)),
        verdicts,
        Paragraphs((*summary.decided, *summary.undecided), listed=True),
        Paragraphs((*summary.uncertain_rates, *summary.shared_rates), listed=True),
        Paragraphs(details, listed=True, collapsed=heading),
        Paragraphs((summary.rule, summary.progress)),
    ]


def _describe_seeds(design: StudyDesign, trials: Sequence[Trial]) -> str:
    """Return the number of planned seeds. A sequential study may end with fewer, so add the number that ran so far."""
    planned = len(design.seeds)
    done = len({trial.spec.seed for trial in trials if trial.status is Status.COMPLETE})
    if not isinstance(design.config.seeds, SequentialSeeds) or done >= planned:
        return str(planned)
    return f"{done} so far, up to {planned}"


def _score_charts(comparison: Comparison) -> Charts:
    """Return the charts of scores, or none if they are many and charts over a varied number show the same scores."""
    charts = tuple(study_charts.score_charts(comparison))
    are_replaced = len(charts) > _MAX_SCORE_CHARTS and study_charts.varied_key(comparison) is not None
    return Charts(() if are_replaced else charts)


def _tables(summary: StudySummary, *topics: str, collapsed: bool = False) -> list[ReportTable]:
    return [_table(table, collapsed=collapsed) for table in summary.tables if table.topic in topics]


def _table(table: SummaryTable, *, collapsed: bool) -> ReportTable:
    """Convert a table of the summary, without empty columns such as the task in a study of a single task."""
    used = [i for i in range(len(table.columns)) if any(row[i] not in MISSING for row in table.rows)]
    rows = tuple(tuple(row[i] for i in used) for row in table.rows)
    return ReportTable(
        table.title, tuple(table.columns[i] for i in used), rows, tuple(table.notes), collapsed=collapsed
    )


def _trials_without_score(trials: Sequence[Trial], design: StudyDesign) -> list[Block]:
    unscored = [trial for trial in trials if trial.status in (Status.FAIL, Status.PRUNED)]
    by_spec = {trial.spec: trial for trial in trials}
    required = [(spec, by_spec.get(spec)) for spec in design.required_trials(trials)]
    rows = [
        (*_spec_cells(trial.spec), trial.status.value, shorten(trial.error or "-", _MAX_ERROR_CHARS))
        for trial in unscored
    ]
    rows += [
        (*_spec_cells(spec), trial.status.value if trial else "not run yet", "-")
        for spec, trial in required
        if trial is None or not trial.ended
    ]
    if not rows:
        return [Paragraphs(("All required trials are done.",))]
    columns = ("on", "method", "learning rate", "seed", "status", "reason")
    notes = (_EXCLUDED_NOTE,) if unscored else ()
    return [ReportTable("Trials without a score", columns, tuple(rows), notes, wrapped=True)]


def _spec_cells(spec: TrialSpec) -> tuple[str, ...]:
    condition = spec.condition
    return (condition.label, condition.method, format_lr(spec.learning_rate), str(spec.seed))


def _trial_table(trials: Sequence[Trial], design: StudyDesign) -> ReportTable:
    rows = [trial.to_row(design.config.grid) for trial in trials]
    # The key, a hash, is last: readers look for the settings and scores.
    columns = [*dict.fromkeys(column for row in rows for column in row if column != "key"), "key"]
    for column in _HIDDEN_COLUMNS:
        if len({format_value(row.get(column)) for row in rows}) <= 1 and column in columns:
            columns.remove(column)
    cells = tuple(tuple(_trial_cell(column, row.get(column)) for column in columns) for row in rows)
    column_titles = tuple(column.replace("_", " ") for column in columns)
    return ReportTable("Every trial", column_titles, cells, ("`ailora study export` writes this table to a file.",))


def _trial_cell(column: str, value: object) -> str:
    if column in ("learning_rate", "seed"):
        return format_value(value, column)
    if column.endswith("seconds") and is_finite(value):
        return f"{value:.2f}"
    return shorten(format_value(value), _MAX_CELL_CHARS)


def _settings(design: StudyDesign) -> list[Block]:
    configs = {}
    for condition in design.conditions:
        config = design.base_config(condition).model_dump(exclude={"output"})
        # Each trial replaces these keys, so no trial uses the values of the base configuration.
        for key in ("learning_rate", "seed"):
            config["training"].pop(key, None)
        configs[condition.task, condition.method, condition.setting_label] = config
    text = "A trial has the settings of its task, method and grid, with its own learning rate and seed."
    return [Paragraphs((text,)), *settings_blocks(configs, ("task", "method", "setting"))]


def _instructions(study: Mapping[str, Any]) -> list[Block]:
    # Reports are sent to other people: no secret may be in them.
    plain = {key: value for key, value in without_secrets(study).items() if value not in (None, {}, [])}
    text = "Save the file as study.yaml. The command runs the missing trials, and no finished trial again."
    return [
        Paragraphs((text,)),
        Code("Command", "ailora study run study.yaml --workers 2"),
        Code("study.yaml", format_yaml(plain), collapsed=True),
        version_table("Versions that made this page", {"version": library_versions()}),
    ]
