"""Runs, whole, half-written and damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ailora.plots.chart_spec import Heatmap
from ailora.report.build import build_page
from ailora.report.document import Chapter, Charts, Code, Note, Page, Paragraphs, ReportTable
from ailora.report.html import render
from ailora.report.run_page import run_chapter
from ailora.report.run_reader import count_predictions, read_run
from tests.report.sample_studies import TEXTS, run_folder


def chapter_of(*folders: Path) -> Chapter:
    return run_chapter([read_run(folder, folder.name) for folder in folders])


def blocks(chapter: Chapter, title: str, kind: type) -> list[Any]:
    return [b for section in chapter.sections if section.title == title for b in section.blocks if isinstance(b, kind)]


def notes(chapter: Chapter) -> str:
    return "\n".join(note.text for note in blocks(chapter, "Summary", Note))


def curves(chapter: Chapter) -> dict[str, Any]:
    return {chart.title: chart for block in blocks(chapter, "Curves", Charts) for chart in block.charts}


def test_a_finished_run_is_shown_whole(tmp_path: Path) -> None:
    chapter = chapter_of(run_folder(tmp_path / "one"))
    assert [section.title for section in chapter.sections] == [
        "Summary",
        "Curves",
        "Metrics",
        "Cost",
        "Settings",
        "Versions",
        "Run it again",
    ]
    (words,) = blocks(chapter, "Summary", Paragraphs)
    assert words.sentences[0].startswith("one (ailora): validation loss 0.3000, accuracy 0.8200; test loss 0.3500")
    found = curves(chapter)
    assert list(found) == ["Validation loss", "Validation accuracy", "Training loss", "Learning rate"]
    assert found["Validation loss"].series[0].y[0] == pytest.approx(0.65)
    (metrics,) = blocks(chapter, "Metrics", ReportTable)
    assert metrics.columns == ("run", "validation loss", "validation accuracy", "test loss", "test accuracy")
    (cost,) = blocks(chapter, "Cost", ReportTable)
    assert cost.rows[0][-3:] == ("42 s", "800.0 MiB", "576.2 KiB")
    command = blocks(chapter, "Run it again", Code)[0].text
    assert command == f"ailora train {tmp_path / 'one' / 'config.yaml'} output=out/again"
    assert not notes(chapter)


def test_several_runs_stand_beside_each_other(tmp_path: Path) -> None:
    other = {"adapter": {"policy": "lora", "rank": 8}}
    worse = {"validation": {"loss": 0.4}, "test": {"loss": 0.5}}
    chapter = chapter_of(run_folder(tmp_path / "a"), run_folder(tmp_path / "b", config=other, metrics=worse))
    assert chapter.title == "2 runs"
    loss = curves(chapter)["Validation loss"]
    assert [(one.name, one.style) for one in loss.series] == [("a", 0), ("b", 1)]
    comparison = blocks(chapter, "Summary", Paragraphs)[1].sentences[0]
    assert "The lowest test loss is that of a, 0.3500, before b, 0.5000." in comparison
    (differs,) = blocks(chapter, "Settings", ReportTable)
    assert (differs.columns, differs.rows) == (("run", "adapter.policy"), (("a", "ailora"), ("b", "lora")))
    assert blocks(chapter, "Metrics", ReportTable)[0].rows[1] == ("b", "0.4000", "-", "0.5000", "-")


@pytest.mark.parametrize("changed", [{"data": {"validation": "c.tsv"}}, {"model": "another"}])
def test_losses_of_different_tasks_are_not_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    chapter = chapter_of(run_folder(tmp_path / "a"), run_folder(tmp_path / "b", config=changed))
    assert "lowest" not in str(blocks(chapter, "Summary", Paragraphs))
    more = {"data": {"train": "more.tsv", "validation": "b.tsv", "text": ["sentence"]}}
    chapter = chapter_of(tmp_path / "a", run_folder(tmp_path / "c", config=more))
    assert "The lowest test loss" in str(blocks(chapter, "Summary", Paragraphs))


def test_a_half_written_run_shows_what_is_there(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "half")
    (folder / "result.json").unlink()
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 85, "lo')
    checkpoint = folder / "checkpoints" / "checkpoint-40"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete.json").write_text('{"train_seconds": 1.0}')
    logged = [{"step": 20, "eval_loss": 0.6}, {"step": 25, "loss": 0.5}, {"step": 40, "eval_loss": 0.5}]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
    chapter = chapter_of(folder)
    assert "has not finished" in notes(chapter)
    assert "log.jsonl: 1 line is damaged and left out." in notes(chapter)
    found = curves(chapter)
    assert found["Validation loss"].series[0].y == [0.6, 0.5]
    assert found["Training loss"].series[0].x[-1] == 80
    assert blocks(chapter, "Summary", Paragraphs)[0].sentences == (
        "half (ailora) has no result yet; its last logged step is 80.",
    )


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "failed")
    (folder / "result.json").unlink()
    (folder / "failed.txt").write_text("ended before the first checkpoint: ValueError: <b>no</b>\n")
    assert "This run failed: ended before the first checkpoint: ValueError: <b>no</b>" in notes(chapter_of(folder))


#: Contents of a damaged file -> what the page says.
DAMAGE = {
    "result.json": ("{", "result.json is damaged"),
    "config.yaml": ("a: [", "is not YAML"),
    "log.jsonl": ('null\n[]\n{"step": "x", "loss": 1}\n', "2 lines are damaged"),
    "samples.jsonl": ("{}\nx\n", "1 line is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_does_not_take_the_rest_along(tmp_path: Path, name: str) -> None:
    folder = run_folder(tmp_path / "run", samples=[{"prompt": "p", "output": "o", "references": ["r"]}])
    content, said = DAMAGE[name]
    (folder / name).write_text(content)
    chapter = chapter_of(folder)
    assert said in notes(chapter)
    assert "has no result.json" not in notes(chapter)
    render(Page("run", (chapter,)))


def test_only_runs_with_a_readable_configuration_can_be_run_again(tmp_path: Path) -> None:
    damaged, sound = (run_folder(tmp_path / name) for name in ("damaged", "sound"))
    (damaged / "config.yaml").write_text("a: [")
    command = blocks(chapter_of(damaged, sound), "Run it again", Code)[0].text
    assert command == f"ailora train {sound / 'config.yaml'} output=out/again"


def test_numbers_that_are_none_are_said_so(tmp_path: Path) -> None:
    history = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": math.inf}]
    metrics = {"validation": {"loss": math.nan, "accuracy": -math.inf}}
    folder = run_folder(tmp_path / "nan", history=history, metrics=metrics, best={"loss": None}, peak_memory_bytes=None)
    chapter = chapter_of(folder)
    assert blocks(chapter, "Metrics", ReportTable)[0].rows == (("nan", "not a number", "minus infinite"),)
    page = render(Page("nan", (chapter,)))
    assert "2 values are not a finite number and left out." in page
    data = page.partition('id="figures">')[2].partition("</script>")[0]
    assert json.loads(data)["f1"]["data"][0]["y"] == [None, 0.5, None]
    assert "NaN" not in data


def test_other_versions_are_noted(tmp_path: Path) -> None:
    chapter = chapter_of(run_folder(tmp_path / "old", versions={"ailora": "0.0.1", "unknown": "1"}))
    assert "made with versions that differ from the installed: ailora 0.0.1 (now " in notes(chapter)


def test_predictions_are_a_matrix_of_classes(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", labels=["0", "1"])
    frame = pd.DataFrame({"label": ["0", "0", "1"], "prediction": ["0", "1", "1"], "split": "test"})
    frame.to_parquet(folder / "predictions.parquet")
    (heat,) = (chart for block in blocks(chapter_of(folder), "Metrics", Charts) for chart in block.charts)
    assert isinstance(heat, Heatmap)
    assert heat.values == ((1.0, 1.0), (0.0, 1.0))
    assert heat.caption.endswith("2 of 3 predictions equal the label.")
    # Logits that are not finite give no prediction; a class may be named None.
    frame["prediction"] = ["0", None, "1"]
    frame.to_parquet(folder / "predictions.parquet")
    run = read_run(folder, "run")
    run.result["labels"] = ["0", "1", "None"]
    assert count_predictions(run) == (["0", "1", "None"], [[1, 0, 0], [0, 1, 0], [0, 0, 0]], "test")
    frame.assign(prediction=None).to_parquet(folder / "predictions.parquet")
    assert count_predictions(run) == (["0", "1", "None"], [[0] * 3] * 3, "test")
    assert render(Page("no predictions", (chapter_of(folder),)))
    (folder / "predictions.parquet").write_text("no")
    chapter = chapter_of(folder)
    assert not blocks(chapter, "Metrics", Charts)
    assert "predictions.parquet cannot be read" in notes(chapter)


def test_samples_are_text_and_few(tmp_path: Path) -> None:
    samples = [{"prompt": said, "output": said + "x" * 2000, "references": [said, "b"]} for said in TEXTS] * 10
    chapter = chapter_of(run_folder(tmp_path / "run", samples=samples))
    (table,) = blocks(chapter, "Samples", ReportTable)
    assert len(table.rows) == 20
    assert table.notes[0].startswith("The first 20 of 40")
    assert table.rows[0][2] == f"{TEXTS[0]}\nb"
    page = render(Page("run", (chapter,))).partition('<script type="application/json"')[0]
    assert "<script" not in page
    assert "<img" not in page
    assert "(501 more characters)" not in table.rows[0][0]
    assert "more characters)" in table.rows[0][1]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / place / "run") for place in ("a", "b")]
    chapter = build_page(folders).chapters[0]
    assert [row[0] for row in blocks(chapter, "Metrics", ReportTable)[0].rows] == ["a/run", "b/run"]


SEARCH = {
    "goal": "loss",
    "sentences": ["ailora at 2e-3 on all linear layers (rank 3): validation loss 0.3000.", "One seed each."],
    "rungs": [{"step": 10, "candidates": 2}, {"step": 100, "candidates": 1}],
    "importances": [{"name": "learning rate", "share": 0.7, "low": 0.5, "high": 0.8}, {"name": "no numbers"}],
    "candidates": [
        {
            "policy": policy,
            "roles": roles,
            "rank": 3,
            "learning_rate": rate,
            "trainable_parameters": 1024,
            "values": values,
            "error": None,
        }
        for policy, roles, rate, values in [
            ("ailora", "all", 2e-3, {"10": 0.5, "100": 0.3}),
            ("lora", ["query", "value"], 1e-2, {"10": 0.6}),
        ]
    ],
}


def test_rungs_name_the_metric_that_ranked_them(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "one")
    rungs = [{"step": 10, "candidates": 2, "metric": "loss"}, {"step": 100, "candidates": 1, "metric": "f1_macro"}]
    (folder / "tune.json").write_text(json.dumps(SEARCH | {"goal": "f1_macro", "rungs": rungs}))
    chapter = chapter_of(folder)
    importances, candidates = blocks(chapter, "Search", ReportTable)
    assert candidates.columns[-3:] == ("loss, step 10", "f1 macro, step 100", "error")
    assert importances.notes[0].startswith("Differences in loss at step 10.")
    assert blocks(chapter, "Search", Charts)[0].charts[0].y.label == "validation loss"


def test_a_run_that_tune_chose_shows_its_search(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "one")
    assert "Search" not in [section.title for section in chapter_of(folder).sections]
    (folder / "tune.json").write_text(json.dumps(SEARCH))
    chapter = chapter_of(folder)
    assert SEARCH["sentences"] == [*blocks(chapter, "Search", Paragraphs)[0].sentences]
    importances, candidates = blocks(chapter, "Search", ReportTable)
    assert importances.rows == (("learning rate", "70 %", "50 %", "80 %"),)
    assert [row[-3:] for row in candidates.rows] == [("0.5000", "0.3000", "-"), ("0.6000", "-", "-")]
    (chart,) = blocks(chapter, "Search", Charts)[0].charts
    assert {series.name: (*series.x, *series.y) for series in chart.series} == {
        "ailora": (2e-3, 0.5),
        "lora": (1e-2, 0.6),
    }
    assert "2e-3 on all linear layers" in render(build_page([folder]))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"candidates": 1, "rungs": [1]}', '{"candidates": [{}], "rungs": [{"step": 1}]}']
)
def test_a_damaged_search_is_left_out_or_noted(tmp_path: Path, content: str) -> None:
    folder = run_folder(tmp_path / "one")
    (folder / "tune.json").write_text(content)
    assert "Metrics" in [section.title for section in chapter_of(folder).sections]
