"""An analysis as a part of a page: its findings in words, its charts, its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pandas as pd

from ailora.analysis import Analysis
from ailora.formatting import format_value, pluralize
from ailora.plots.analysis_charts import build_analysis_charts
from ailora.plots.chart_spec import Chart, Heatmap
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import Block, Charts, Code, Facts, Note, Part, Table, Words, section, sections
from ailora.report.versions import other_versions

#: The first word of a chart's name -> the section it stands in.
_SECTIONS = {
    "Where the weights lie": ("tsne", "pca", "dispersion"),
    "What fine-tuning changed": ("update", "share", "effective", "intruders", "anchor"),
    "What the base's weights are": ("spectrum", "base"),
}
#: Rows of a table that a page shows; the rest is in the analysis.
_MOST_ROWS = 1000


def analysis_part(name: str, analysis: Analysis) -> Part:
    """An analysis.

    Args:
        name: as the page calls it.
        analysis: from `load_analysis`.
    """
    charts = [chart for chart in build_analysis_charts(analysis) if isinstance(chart, Heatmap) or chart.series]
    placed = {title: [c for c in charts if _word(c) in words] for title, words in _SECTIONS.items()}
    rest = [chart for chart in charts if not any(chart in found for found in placed.values())]
    return Part(
        title=name,
        sort="analysis",
        sections=sections(
            section("Summary", *_summary(analysis)),
            *(section(title, Charts(tuple(found))) for title, found in placed.items()),
            section("More charts", Charts(tuple(rest))),
            section("Numbers", *_numbers(analysis)),
            section("Settings", Code("Settings", format_yaml(analysis.info.get("settings", {})))),
            section("Versions", _versions(analysis)),
            section("Run it again", Code("Command", _command(analysis))),
        ),
    )


def _word(chart: Chart) -> str:
    return chart.name.partition("-")[0]


def _summary(analysis: Analysis) -> list[Block]:
    info = analysis.info
    facts = {
        "base": format_value(info.get("base")),
        "compared with it": pluralize(len(info.get("after", {})), "model"),
        "roles": ", ".join(info.get("settings", {}).get("roles", [])),
        "weights": pluralize(len(analysis.spectra), "spectrum", "spectra"),
    }
    found = info.get("findings", [])
    said = Words(tuple(found), listed=True) if found else Words(("Nothing was compared: the base is shown alone.",))
    notes = [*other_versions("analysis", info.get("versions")), *info.get("notes", [])]
    return [*map(Note, notes), Facts(tuple(facts.items())), said]


def _numbers(analysis: Analysis) -> Iterator[Table]:
    titles = {"deltas": "Updates, a row for each weight", "spectra": "Spectra, a row for each weight"}
    for name, title in titles.items():
        frame: pd.DataFrame = getattr(analysis, name)
        # Whole spectra are lists of numbers: the charts show them.
        columns = [column for column in frame.columns if not any(map(_is_list, frame[column]))]
        rows = tuple(tuple(map(format_value, row)) for row in frame[columns].head(_MOST_ROWS).itertuples(index=False))
        rest = len(frame) - len(rows)
        notes = (f"{pluralize(rest, 'more row is', 'more rows are')} in {name}.parquet.",) if rest else ()
        yield Table(title, tuple(column.replace("_", " ") for column in columns), rows, notes, collapsed=True)


def _is_list(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def _versions(analysis: Analysis) -> Table:
    found = analysis.info.get("versions", {})
    rows = tuple((library, format_value(version)) for library, version in found.items())
    return Table("Libraries that analysed", ("library", "version"), rows)


def _command(analysis: Analysis) -> str:
    info = analysis.info
    settings = info.get("settings", {})
    models = [str(info.get("base", "BASE")), *map(str, info.get("after", {}).values())]
    options = ["--roles", ",".join(settings.get("roles", [])), "--rank", str(settings.get("rank", 8))]
    return shlex.join(["ailora", "analyze", *models, *options, "--out", "out/analysis"])
