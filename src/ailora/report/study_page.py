"""A study as a part of a page: words first, then charts, tables, and all that it takes to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ailora.formatting import format_lr, format_value, is_finite, shorten
from ailora.plan.adapter_metadata import library_versions
from ailora.plots.study_charts import rate_charts, score_charts, varied, varied_charts
from ailora.plots.study_curves import convergence_charts, cost_charts
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import MISSING, Block, Charts, Code, Facts, Note, Part, Table, Words, section, sections
from ailora.report.init_pair_heatmap import pair_charts
from ailora.report.report_settings import settings
from ailora.report.study_summary import amounts, decisions, headline
from ailora.report.trial_selection import counting
from ailora.studies.comparison import Comparison, compare
from ailora.studies.conditions import Cell, Grid
from ailora.studies.storage_url import shown as url_shown
from ailora.studies.summary import TextTable, summary, tables
from ailora.studies.trial_storage import Status, Trial
from ailora.studies.trial_table import row
from ailora.studies.trial_table import scores as scores_of

#: Columns of the table of trials that are of no use where all of them are the same.
_QUIET = ("task", "max_steps", "attempts", "error", "steps", "trainable_parameters", "total_parameters", "folder")
_LONGEST_ERROR = 2000
#: Sentences beyond which they are closed until somebody opens them.
_MOST_SENTENCES = 8


def study_part(name: str, study: Mapping[str, Any], every: Sequence[Trial], grid: Grid, *, bootstrap: bool) -> Part:
    """A study.

    Args:
        name: of the study.
        study: its file, plain data, as the storage keeps it.
        every: all trials of the storage.
        grid: the study.
        bootstrap: as of `compare`.
    """
    counted = counting(every, grid)
    found = compare(counted.trials, grid, bootstrap=bootstrap)
    scored, over = _score_charts(found), section("Ranks and other settings", Charts(tuple(varied_charts(found))))
    scores = section("Scores", scored, *_tables(found, "scores", "ranks"))
    return Part(
        title=name,
        sort="study",
        sections=sections(
            section("Summary", *_summary(found, counted.trials, counted.notes)),
            # Pictures first.
            *([scores, over] if scored.charts else [over, scores]),
            section("Which start for which matrix", Charts(tuple(pair_charts(found)))),
            section("Learning rates", Charts(tuple(rate_charts(found))), *_tables(found, "rates", collapsed=True)),
            section("Convergence", Charts(tuple(convergence_charts(found))), *_tables(found, "speed")),
            section("Cost", Charts(tuple(cost_charts(found))), *_tables(found, "cost")),
            section("Failed, pruned and missing trials", *_lost(counted.trials, grid)),
            section("All trials", _trials(counted.trials, grid)),
            section("Settings", *_settings(grid)),
            section("Run it again", *_again(study)),
        ),
    )


def _summary(found: Comparison, trials: Sequence[Trial], notes: Sequence[str]) -> list[Block]:
    blocks: list[Block] = [Note(note) for note in notes]
    count = Counter(trial.status for trial in trials)
    if not count[Status.DONE]:
        blocks.append(Note("No trial of this study has finished: there is nothing to compare yet.", "error"))
    said, grid = summary(found), found.grid
    metrics = sorted({grid.metric_of(group) for group in grid.groups})
    facts = {
        "baseline": grid.baseline,
        "methods": str(len(grid.methods)),
        "tasks": str(len({group.task for group in grid.groups})),
        "decided by": ", ".join(metrics),
        "seeds": str(len([*grid.config.seeds, *grid.config.extra_seeds])),
        "trials done": f"{count[Status.DONE]:,} of {len(trials):,}",
    }
    blocks += [Facts(tuple(facts.items())), Words(tuple(headline(found))), Words(tuple(decisions(found)), listed=True)]
    # How verdicts are made, and how many trials there are, are the summary's last two sentences.
    every = (*said[:-2], *amounts(found))
    collapsed = f"Place by place: {len(every)} sentences" if len(every) > _MOST_SENTENCES else ""
    return [*blocks, Words(every, listed=True, collapsed=collapsed), Words(tuple(said[-2:]))]


def _score_charts(found: Comparison) -> Charts:
    """For each task and point; where one setting is varied, its own charts show more with less."""
    charts = tuple(score_charts(found))
    return Charts(charts if varied(found) is None or len(charts) <= 4 else ())


def _tables(found: Comparison, *topics: str, collapsed: bool = False) -> list[Table]:
    return [_table(table, collapsed=collapsed) for table in tables(found) if table.topic in topics]


def _table(made: TextTable, *, collapsed: bool) -> Table:
    """Without the columns in which nothing stands, as the place in a study of one task."""
    used = [i for i in range(len(made.columns)) if any(row[i] not in MISSING for row in made.rows)]
    rows = tuple(tuple(row[i] for i in used) for row in made.rows)
    return Table(
        made.title,
        tuple(made.columns[i] for i in used),
        rows,
        tuple(made.notes),
        collapsed=collapsed,
    )


def _lost(trials: Sequence[Trial], grid: Grid) -> list[Block]:
    lost = [trial for trial in trials if trial.status in (Status.FAILED, Status.PRUNED)]
    known = {Cell.of(trial.cell) for trial in trials if trial.ended}
    missing = [cell for cell in grid.wanted(scores_of(trials, grid)) if cell not in known]
    columns = ("on", "method", "learning rate", "seed", "what became of it", "why")
    rows = [
        (*_cell_words(grid, Cell.of(trial.cell)), trial.status.value, shorten(trial.error or "-", _LONGEST_ERROR))
        for trial in lost
    ]
    rows += [(*_cell_words(grid, cell), "not run yet", "-") for cell in missing]
    if not rows:
        return [Words(("Every trial that the study asks for is done.",))]
    notes = ("A learning rate at which a trial failed is out for that method.",) if lost else ()
    return [Table("Trials without a score", columns, tuple(rows), notes, wrapped=True)]


def _cell_words(grid: Grid, cell: Cell) -> tuple[str, ...]:
    group = cell.group
    place = ", ".join(part for part in (group.task, grid.point_of(group)) if part)
    return (place, group.method, format_lr(cell.learning_rate), str(cell.seed))


def _trials(trials: Sequence[Trial], grid: Grid) -> Table:
    made = [row(trial, grid) for trial in trials]
    columns = [key for key in dict.fromkeys(key for one in made for key in one) if key != "key"] + ["key"]
    for quiet in _QUIET:
        if len({format_value(one.get(quiet)) for one in made}) <= 1 and quiet in columns:
            columns.remove(quiet)
    rows = tuple(tuple(_trial_cell(column, one.get(column)) for column in columns) for one in made)
    heads = tuple(column.replace("_", " ") for column in columns)
    return Table("Every trial", heads, rows, ("`ailora study export` writes this table to a file.",))


def _trial_cell(column: str, value: Any) -> str:
    if column == "learning_rate":
        return format_lr(value)
    if column.endswith("seconds") and is_finite(value):
        return f"{value:.2f}"
    return shorten(format_value(value), 160)


def _settings(grid: Grid) -> list[Block]:
    configs = {}
    for group in grid.groups:
        config = grid.base_of(group).model_dump(exclude={"output"})
        for own in ("learning_rate", "seed"):
            config["training"].pop(own, None)
        configs[group.task, group.method, grid.point_of(group)] = config
    text = "A trial has the settings of its task, method and point, with its own learning rate and seed."
    return [Words((text,)), *settings(configs, ("task", "method", "point"))]


def _again(study: Mapping[str, Any]) -> list[Block]:
    plain = {key: value for key, value in study.items() if value not in (None, {}, [])}
    if isinstance(plain.get("storage"), str):
        plain["storage"] = url_shown(plain["storage"])
    versions = tuple(library_versions().items())
    return [
        Words(("Save the file as study.yaml. The command goes on where trials are missing and runs nothing twice.",)),
        Code("Command", "ailora study run study.yaml --workers 2"),
        Code("study.yaml", format_yaml(plain), collapsed=True),
        Table("Versions that made this page", ("library", "version"), versions),
    ]
