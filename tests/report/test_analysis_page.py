"""An analysis' chapter of a page, of real weights of a small model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ailora.analysis import Analysis
from ailora.report import analysis_page
from ailora.report.build import build_page
from ailora.report.document import Chapter, ChapterSection, Charts, Note, Page, Paragraphs, ReportTable
from ailora.report.html import render, write_figures
from tests.analysis.conftest import Made, analyze_into, models

__all__ = ["models"]


@pytest.fixture(scope="session")
def analysis(models: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis") / "llama"
    analyze_into(out, models("llama"), [models("llama-full"), models("llama-adapter")], rank=4)
    return out


def chapter_of(folder: Path) -> Chapter:
    return build_page([folder]).chapters[0]


def test_findings_charts_and_numbers_are_shown(analysis: Path) -> None:
    chapter = chapter_of(analysis)
    assert (chapter.title, chapter.kind) == ("llama", "analysis")
    titles = [section.title for section in chapter.sections]
    assert titles[:4] == [
        "Summary",
        "Where the weights lie",
        "What fine-tuning changed",
        "What the base's weights are",
    ]
    assert "More charts" not in titles
    said = next(block for block in chapter.sections[0].blocks if isinstance(block, Paragraphs)).sentences
    assert said == tuple(json.loads((analysis / "analysis.json").read_text())["findings"])
    tables = [b for section in chapter.sections if section.title == "Numbers" for b in section.blocks]
    assert [isinstance(table, ReportTable) and len(table.rows) for table in tables] == [16, 24]
    command = next(s for s in chapter.sections if s.title == "Run it again").blocks[0]
    assert "--roles query,value --rank 4" in command.text  # type: ignore[union-attr]


def test_every_chart_of_it_is_a_figure(analysis: Path) -> None:
    page = build_page([analysis])
    made = render(page)
    data = json.loads(made.partition('id="figures">')[2].partition("</script>")[0])
    assert len(data) == len(list(page.charts)) > 8
    assert all(figure["data"] for figure in data.values())
    dispersion = next(chart for chart in page.charts if chart.name == "dispersion")
    figure = data[f"f{list(page.charts).index(dispersion) + 1}"]
    # Points stand where the chart has put them.
    assert figure["data"][0]["x"] == pytest.approx([-0.06, 0.94, 1.94])
    assert figure["layout"]["showlegend"]


def test_other_versions_and_damage_are_told(analysis: Path, tmp_path: Path) -> None:
    info = json.loads((analysis / "analysis.json").read_text())
    folder = tmp_path / "old"
    folder.mkdir()
    for file in analysis.glob("*.parquet"):
        (folder / file.name).write_bytes(file.read_bytes())
    info["versions"]["torch"] = "1.0"
    (folder / "analysis.json").write_text(json.dumps(info))
    notes = [block.text for block in chapter_of(folder).sections[0].blocks if isinstance(block, Note)]
    assert "torch 1.0 (now" in notes[0]
    (folder / "deltas.parquet").write_text("no")
    page = build_page([folder, analysis])
    assert len(page.chapters) == 1
    assert "deltas.parquet cannot be read" in page.problems[0]


def test_figures_for_papers_are_written(analysis: Path, tmp_path: Path) -> None:
    first = next(build_page([analysis]).charts)
    small = Page("x", (Chapter("x", "analysis", (ChapterSection("S", (Charts((first,)),)),)),))
    assert write_figures(small, tmp_path / "deep" / "figures") == 1
    files = sorted(file.name for file in (tmp_path / "deep" / "figures").iterdir())
    assert files == [f"{first.name}.{ending}" for ending in ("pdf", "png", "svg")]
    assert b"<svg" in (tmp_path / "deep" / "figures" / files[2]).read_bytes()[:2000]


def test_the_command_has_all_settings() -> None:
    settings = {"roles": ["query"], "rank": 4, "points": "heads", "perplexity": 3.5, "top": 20, "epsilon": 0.3}
    info = {"base": "a model", "after": {"x": "b"}, "settings": settings | {"directions": True}}
    command = analysis_page._command(cast(Analysis, SimpleNamespace(info=info)))
    assert command.startswith(
        "ailora analyze 'a model' b --roles query --rank 4 --points heads --perplexity 3.5 --top 20"
    )
    assert " --epsilon 0.3 --directions " in command
    info["settings"] |= {"role_names": {"wq$": "query"}}
    info["after"] = {"x": "b\x1b"}
    command = analysis_page._command(cast(Analysis, SimpleNamespace(info=info)))
    assert command.startswith("ailora analyze 'a model' $'b\\x1b' --roles query ")
    assert " --role-name 'wq$=query' --directions " in command
    info["after"] = {"x": "b"}
    # Earlier versions stored fewer settings.
    info["settings"] = {"roles": ["query"], "rank": 4, "perplexity": None}
    command = analysis_page._command(cast(Analysis, SimpleNamespace(info=info)))
    assert command == "ailora analyze 'a model' b --roles query --rank 4 --out out/analysis"
