"""Chapter of an analysis: findings, charts, tables and settings."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ailora.analysis import Analysis
from ailora.formatting import format_value, pluralize, quote_argument
from ailora.plots.analysis_charts import build_analysis_charts
from ailora.plots.chart_spec import Chart
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import (
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
from ailora.report.versions import version_notes, version_table

#: Section -> first words of the names of its charts.
_CHART_SECTIONS = {
    "Where the weights lie": ("tsne", "pca", "dispersion"),
    "What fine-tuning changed": ("update", "share", "directions", "effective", "intruders", "anchor"),
    "What the base's weights are": ("spectrum", "base"),
}
#: Maximum number of rows in a table; further rows are in the files of the analysis only.
_MAX_TABLE_ROWS = 1000
#: Settings that are options of `ailora analyze` with a value.
_OPTIONS = ("rank", "points", "perplexity", "top", "epsilon")


def analysis_chapter(name: str, analysis: Analysis) -> Chapter:
    """Build the chapter of an analysis.

    Args:
        name: Title of the chapter.
        analysis: The result of `load_analysis`.

    Returns:
        The chapter, with the summary first.
    """
    charts: dict[str, list[Chart]] = {title: [] for title in (*_CHART_SECTIONS, "More charts")}
    for chart in build_analysis_charts(analysis):
        subject = chart.name.partition("-")[0]
        section_title = next((title for title, names in _CHART_SECTIONS.items() if subject in names), "More charts")
        charts[section_title].append(chart)
    versions = version_table("Libraries that analysed", {"version": analysis.info.get("versions")})
    return Chapter(
        title=name,
        kind="analysis",
        sections=sections(
            section("Summary", *_summary(analysis)),
            *(section(title, Charts(tuple(group))) for title, group in charts.items()),
            section("Numbers", *_numbers(analysis)),
            section("Settings", Code("Settings", format_yaml(analysis.info.get("settings", {})))),
            section("Versions", versions),
            section("Run it again", Code("Command", _command(analysis))),
        ),
    )


def _summary(analysis: Analysis) -> list[Block]:
    info = analysis.info
    finetuned_models = info.get("after", {})
    pairs = (
        ("base", format_value(info.get("base"))),
        ("compared with it", pluralize(len(finetuned_models), "model")),
        ("roles", ", ".join(info.get("settings", {}).get("roles", []))),
        ("weights", pluralize(len(analysis.spectra), "spectrum", "spectra")),
    )
    findings = tuple(info.get("findings", []))
    text = Paragraphs(findings or ("Nothing was compared: the base is shown alone.",), listed=bool(findings))
    notes = [*version_notes("analysis", info.get("versions")), *info.get("notes", [])]
    return [*map(Note, notes), KeyValues(pairs), text]


def _numbers(analysis: Analysis) -> Iterator[ReportTable]:
    titles = {"deltas": "Updates, a row for each weight", "spectra": "Spectra, a row for each weight"}
    if len(analysis.directions):
        titles["directions"] = "Directions, a row for each update, side and bin"
    for name, title in titles.items():
        frame: pd.DataFrame = getattr(analysis, name)
        # A cell of these columns is a whole spectrum; the charts show the spectra.
        frame = frame.drop(columns=["indices", "values"], errors="ignore")
        rows = tuple(tuple(map(format_value, row)) for row in frame.head(_MAX_TABLE_ROWS).itertuples(index=False))
        rest = len(frame) - len(rows)
        notes = (f"{pluralize(rest, 'more row is', 'more rows are')} in {name}.parquet.",) if rest else ()
        yield ReportTable(title, tuple(column.replace("_", " ") for column in frame), rows, notes, collapsed=True)


def _command(analysis: Analysis) -> str:
    info = analysis.info
    settings = info.get("settings", {})
    # `after` maps the names of the fine-tuned models to their paths.
    models = [str(info.get("base", "BASE")), *map(str, info.get("after", {}).values())]
    options = ["--roles", ",".join(settings.get("roles", []))]
    for name in _OPTIONS:
        # Analyses of earlier versions lack some settings; a setting of None is the default of its option.
        if settings.get(name) is not None:
            options += [f"--{name}", str(settings[name])]
    for pattern, role in settings.get("role_names", {}).items():
        options += ["--role-name", f"{pattern}={role}"]
    flags = ["--directions"] if settings.get("directions") else []
    return " ".join(map(quote_argument, ["ailora", "analyze", *models, *options, *flags, "--out", "out/analysis"]))
