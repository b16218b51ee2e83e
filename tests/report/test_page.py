"""Arguments to one file: recognised, assembled, safe, whole or not there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ailora import InputError
from ailora.path_kind import PathKind
from ailora.plots.chart_spec import Axis, Plot, Series
from ailora.report.build import build_page
from ailora.report.document import Chapter, ChapterSection, Charts, Note, Page
from ailora.report.html import code_spans, json_text, render, unique_file_names, write_page
from ailora.report.inputs import detect_input
from ailora.studies.trial_storage import TrialStorage
from tests.report.sample_studies import HOSTILE, TEXTS, plausible, run_folder, stored, study_file


def chart(name: str) -> Plot:
    return Plot(name, name, "lines", Axis("x"), Axis("y"), (Series("a", [0, 1], [0, 1]),), "C.")


def page_of(*charts: Plot) -> Page:
    return Page("P", (Chapter("P", "run", (ChapterSection("S", (Charts(charts),)),)),))


def test_json_cannot_end_its_element() -> None:
    made = json_text([*TEXTS, "<!--", "\u2028", "é"])
    assert not re.search("[<>&\u2028]", made)
    assert json.loads(made) == [*TEXTS, "<!--", "\u2028", "é"]
    with pytest.raises(ValueError, match="JSON"):
        json_text([float("nan")])


def test_only_these_scripts_may_run_and_nothing_is_fetched() -> None:
    made = render(page_of(chart("a")))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    assert policy
    said = policy[1].replace("&#39;", "'")
    assert said.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in said
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in said
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=", made.partition("<script")[0])


def test_plotly_is_there_once_and_only_where_something_is_drawn() -> None:
    assert render(page_of(chart("a"), chart("b"))).count("plotly.js v") == 1
    assert len(render(Page("P", (Chapter("P", "run", ()),)))) < 50_000


def test_charts_of_one_name_have_files_of_their_own() -> None:
    assert unique_file_names([chart("a"), chart("b"), chart("a"), chart("a")]) == ["a", "b", "a~2", "a~3"]
    assert unique_file_names([chart("../x/y"), chart(HOSTILE), chart("é")]) == ["x-y", "script-alert-1-script", "chart"]


def test_words_in_backticks_are_code_and_nothing_else_is() -> None:
    assert code_spans("run `ailora <x>` <b>") == "run <code>ailora &lt;x&gt;</code> &lt;b&gt;"


def test_arguments_are_recognised(tmp_path: Path) -> None:
    file = study_file(tmp_path, methods=["lora"], seeds=[0])
    store, _ = stored(file, plausible)
    store.close()
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "analysis.json").write_text("{}")
    run = run_folder(tmp_path / "run")
    found = [detect_input(path) for path in (file, tmp_path / "study", tmp_path / "analysis", run)]
    assert found == [PathKind.STUDY, PathKind.STUDY, PathKind.ANALYSIS, PathKind.RUN]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "there is no .*nowhere"),
        ("folder", "", r"none of a run \(it would hold config.yaml\), a study .* it holds nothing"),
        ("x.txt", "x", "x.txt is a file: give the folder of a run"),
        ("run.yaml", "recipe: classification", "is the configuration of a run: give the run's folder"),
        ("list.yaml", "[1]", "is not a study file: it has no key `methods`"),
        ("broken.yaml", "a: [", "is not YAML"),
    ],
)
def test_what_is_none_of_them_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content == "":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        build_page([path])


def test_a_broken_argument_does_not_take_the_others_along(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.db").write_bytes(b"no database")
    page = build_page([tmp_path / "bad", run, tmp_path / "nowhere"])
    assert [chapter.kind for chapter in page.chapters] == ["run"]
    assert len(page.problems) == 2
    made = render(page)
    assert "Left out" in made
    assert "nowhere" in made


def test_a_broken_study_does_not_take_the_others_of_its_database_along(tmp_path: Path) -> None:
    store, _ = stored(study_file(tmp_path, methods=["lora", "ailora"], seeds=[0]), plausible)
    damaged = {"retries": 1, "worker_timeout": 60}
    for name in ("before", "zz"):
        TrialStorage.create(store.url, name, damaged).close()
    store.close()
    page = build_page([tmp_path / "study"], bootstrap=False)
    assert [chapter.title for chapter in page.chapters] == ["study"]
    assert len(page.problems) == 2


def test_a_run_that_cannot_be_read_does_not_take_the_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_folder(tmp_path / name) for name in ("run", "other")]
    read_text = Path.read_text

    def fail_in_other(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.parent == runs[1]:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", fail_in_other)
    page = build_page(runs)
    assert [chapter.title for chapter in page.chapters] == ["run"]
    assert "Permission denied" in page.problems[0]


def test_several_kinds_share_a_page(tmp_path: Path) -> None:
    file = study_file(tmp_path, methods=["lora", "ailora"], seeds=[0])
    store, _ = stored(file, plausible)
    store.close()
    runs = [run_folder(tmp_path / name) for name in ("run", "other")]
    page = build_page([tmp_path / "study", *runs], bootstrap=False)
    assert [(chapter.kind, chapter.title) for chapter in page.chapters] == [("runs", "2 runs"), ("study", "study")]
    made = render(page)
    assert made.count("<h1") == 1
    ids = re.findall('id="([^"]+)"', made.partition("<script>")[0])
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("out", ["missing/report.html", "."])
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises(InputError, match=r"there is no folder|is a folder"):
        write_page(page_of(), tmp_path / out)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    old = '<meta name="generator" content="ailora 0.1.0">'
    out.write_text(old)
    broken = page_of(Plot("a", "a", "lines", Axis("x"), Axis("y"), (Series("a", [object()], [0]),), ""))  # type: ignore[list-item]
    with pytest.raises(TypeError):
        write_page(broken, out)
    assert out.read_text() == old
    write_page(page_of(chart("a")), out)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_hostile_title_is_text() -> None:
    made = render(Page(HOSTILE, (Chapter(HOSTILE, "run", ()),)))
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;" in made
    assert "alert(1)</script>" not in made


def test_the_package_carries_its_assets() -> None:
    names = {file.name for file in (files("ailora.report") / "assets").iterdir()}
    assert {"page.html", "page.js", "style.css"} <= names


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_page(Page("run-\udcff", (Chapter("run-\udcff", "run", (ChapterSection("A", (Note("run-\udcff"),)),)),)), out)
    assert "run-\\udcff" in out.read_text(encoding="utf-8")
