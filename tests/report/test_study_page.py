"""A study's chapter of a page, whatever became of its trials."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ailora.plots.chart_spec import ForestPlot, Heatmap
from ailora.recipes.config.yaml_file import parse_yaml
from ailora.report.document import Chapter, Charts, Code, KeyValues, Note, Page, Paragraphs, ReportTable
from ailora.report.html import render
from ailora.report.study_page import study_chapter
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Condition, Status, Trial, TrialResult, TrialSpec
from tests.report.sample_studies import HOSTILE, TEXTS, plausible, stored, study_file
from tests.studies.sample_trials import Result, make_design, outcome, quickly, ran, trial

__all__ = ["quickly"]

FIVE = ["lora", "pissa", "milora", "ailora", "reversed"]


def chapter_of(design: StudyDesign, trials: list[Trial], **changes: Any) -> Chapter:
    study = design.config.model_dump(by_alias=True) | changes
    return study_chapter("study", study, trials, design, bootstrap=False)


def blocks(chapter: Chapter, title: str, kind: type) -> list[Any]:
    return [b for section in chapter.sections if section.title == title for b in section.blocks if isinstance(b, kind)]


def charts(chapter: Chapter, title: str) -> list[Any]:
    return [chart for block in blocks(chapter, title, Charts) for chart in block.charts]


def said(chapter: Chapter) -> str:
    return "\n".join(sentence for words in blocks(chapter, "Summary", Paragraphs) for sentence in words.sentences)


def test_who_is_better_by_how_much_and_with_which_interval() -> None:
    gains = {"lora": lambda seed: 0.0, "ailora": lambda seed: 0.05 + seed / 500, "milora": lambda seed: (-0.1) ** seed}
    design = make_design(methods=list(gains))
    chapter = chapter_of(design, ran(design, lambda spec: outcome(0.5 + gains[spec.condition.method](spec.seed))))
    told = said(chapter)
    assert told.startswith("Of 2 comparisons with the baseline lora, 1 is better and 1 is undecided.")
    # The mean of 0, 2, .. 8 thousandths is 0.004, their sd 0.00316: 2.776 sd / sqrt(5) = 0.0039.
    assert "ailora is better than the baseline lora: +0.0540 [+0.0501, +0.0579] accuracy" in told
    assert "milora +0.1818 [" in told
    assert "milora is undecided after 5 seeds: " in told
    assert "Undecided: neither, which is not equality" in told
    table = blocks(chapter, "Scores", ReportTable)[0]
    assert table.columns[-1] == "verdict"
    assert [row[-1] for row in table.rows] == ["", "better", "undecided"]


def test_scores_and_differences_are_dots_with_intervals() -> None:
    design = make_design()
    gain = {"lora": 0.0, "ailora": 0.01}
    trials = ran(design, lambda spec: outcome(0.7 + 0.01 * spec.seed + gain[spec.condition.method]))
    chapter = chapter_of(design, trials)
    (scores,) = charts(chapter, "Scores")
    assert scores.x.categories == ("lora", "ailora")
    assert [one.y[0] for one in scores.series] == pytest.approx([0.72, 0.73])
    # t(4) = 2.776; sd of 0, 1, .. 4 hundredths is 0.0158.
    half = 2.7764 * 0.015811 / math.sqrt(5)
    assert scores.series[0].low[0] == pytest.approx(0.72 - half, abs=1e-5)
    assert [one.style for one in scores.series] == [0, 1]


def test_the_first_figure_has_the_verdicts_of_all_methods_and_tasks() -> None:
    gain = {"lora": 0.0, "ailora": 0.001, "pissa": 0.05, "milora": 0.02}
    design = make_design(methods=list(gain), tasks={"a": {}, "b": {}})

    def result(spec: TrialSpec) -> Result:
        spread = 0.02 if spec.condition.method == "milora" else 0.001
        noise = spread * (spec.seed - 2) if spec.condition.method != "lora" else 0
        return outcome(0.5 + gain[spec.condition.method] + noise)

    chapter = chapter_of(design, ran(design, result))
    page = Page("study", (chapter,))
    forest = next(iter(page.charts))
    assert isinstance(forest, ForestPlot)
    assert [line if isinstance(line, str) else line.label for line in forest.lines][:5] == [
        "a", "ailora", "pissa", "milora", "b",
    ]  # fmt: skip
    first = forest.rows[:3]
    assert [row.verdict for row in first] == ["equivalent", "better", "undecided"]
    assert [row.is_decided for row in first] == [True, True, False]
    assert [row.value for row in first] == pytest.approx([0.001, 0.05, 0.02])
    assert [row.margin for row in first] == [0.01] * 3
    assert forest.limits[0] < min(row.low for row in first if row.low is not None)
    assert "Verdicts against lora" in render(page)


def test_rows_of_the_only_method_are_named_after_their_settings() -> None:
    design = make_design(grid={"adapter.rank": [2, 8]}, seeds=[0])
    (forest,) = charts(chapter_of(design, ran(design, lambda spec: outcome(0.5))), "Summary")
    assert forest.title == "Verdicts: ailora against lora"
    assert forest.lines == list(forest.rows)
    assert [row.label for row in forest.rows] == ["rank 2", "rank 8"]


def test_ranks_are_charted_only_where_a_run_has_a_score() -> None:
    design = make_design(grid={"adapter.rank": [2, 8]}, seeds=[0])
    assert not charts(chapter_of(design, []), "Ranks and other settings")
    trials = [trial for trial in ran(design, lambda spec: outcome(0.5)) if trial.spec.condition.method == "lora"]
    (chart,) = charts(chapter_of(design, trials), "Ranks and other settings")
    assert [series.name for series in chart.series] == ["lora"]


def test_a_figure_of_verdicts_has_a_single_metric_and_at_most_sixty_rows() -> None:
    scores = {split: {"accuracy": 0.5, "f1": 0.6, "loss": 0.5} for split in ("validation", "test")}
    two = make_design(tasks={"a": {}, "b": {"metric": ["f1"]}})
    found = charts(chapter_of(two, ran(two, lambda spec: outcome(0.5, metrics=scores))), "Summary")
    assert [forest.x_label for forest in found] == ["difference of accuracy (test)", "difference of f1 (test)"]
    assert len({forest.name for forest in found}) == 2
    many = make_design(grid={"adapter.rank": list(range(1, 62))}, seeds=[0])
    assert not charts(chapter_of(many, ran(many, lambda spec: outcome(0.5))), "Summary")


def test_curves_are_means_and_ranges_of_the_seeds() -> None:
    design = make_design(learning_rate={"values": [1e-3, 1e-2]}, seeds=[0, 1])
    losses = {0: [0.9, 0.5, 0.3], 1: [0.7, 0.5]}
    chapter = chapter_of(design, ran(design, lambda spec: outcome(0.8 - spec.learning_rate, losses=losses[spec.seed])))
    (rates,) = charts(chapter, "Learning rates")
    assert rates.x.log
    assert (rates.series[0].x, rates.series[0].y) == ([1e-3, 1e-2], pytest.approx([0.799, 0.79]))
    loss, accuracy = charts(chapter, "Convergence")
    line = loss.series[0]
    # Only the steps that every seed has.
    assert (line.x, line.y) == ([10, 20], pytest.approx([0.8, 0.5]))
    assert (line.low, line.high) == ([0.7, 0.5], [0.9, 0.5])
    assert accuracy.y.label == "validation accuracy"


def test_ranks_are_an_axis() -> None:
    design = make_design(
        methods=["lora", "ailora", "full"], grid={"adapter.rank": [2, 8, 32], "adapter.dropout": [0.0, 0.1]}
    )
    chapter = chapter_of(
        design, ran(design, lambda spec: outcome(0.7 + 0.001 * spec.condition.values.get("adapter.rank", 0)))
    )
    over = charts(chapter, "Ranks and other settings")
    assert [chart.title for chart in over] == [
        "accuracy (test) over rank, dropout 0.0",
        "accuracy (test) over rank, dropout 0.1",
    ]
    assert over[0].x.log
    assert {one.name: one.x for one in over[0].series} == {"lora": [2, 8, 32], "ailora": [2, 8, 32]}
    assert over[0].series[1].y == pytest.approx([0.702, 0.708, 0.732])


FIGURE_4 = Path(__file__).parents[2] / "examples/paper/figure4.yaml"


def test_pairs_of_starts_are_a_matrix_whatever_their_names() -> None:
    paper = parse_yaml(FIGURE_4.read_text(encoding="utf-8"))
    methods = [{f"m{i}": next(iter(entry.values()))} for i, entry in enumerate(paper["methods"])]
    design = make_design(methods=methods, seeds=[0], base=_two_roles())
    chapter = chapter_of(design, ran(design, lambda spec: outcome(0.5 + 0.01 * int(spec.condition.method[1:]))))
    (heat,) = charts(chapter, "Which init for which role")
    assert isinstance(heat, Heatmap)
    assert heat.rows == heat.columns == ("frozen", "random", "principal", "minor")
    assert math.isnan(heat.values[0][0])
    # The sixth is query principal, value minor.
    assert heat.values[2][3] == pytest.approx(0.55)
    assert heat.notes[1][1] == "baseline"
    # Methods that are no pairs make no matrix.
    few = make_design(methods=["lora", "full", "peft:olora", {"wide": {"method": "lora", "adapter.rank": 16}}])
    assert not charts(chapter_of(few, ran(few, lambda spec: outcome(0.5))), "Which init for which role")


def _two_roles() -> dict[str, Any]:
    base = make_design().config.base
    assert isinstance(base, dict)
    return base | {"adapter": {"rank": 4, "roles": ["query", "value"]}}


#: What becomes of a spec -> what the page says of it.
FATES: dict[str, tuple[Callable[[TrialSpec], Result], str]] = {
    "nothing has run": (lambda spec: Status.WAITING, "No trial of this study has finished"),
    "everything fails": (lambda spec: "ValueError: broken\ntwice", "ValueError: broken\ntwice"),
    "the baseline fails": (lambda c: "broken" if c.condition.method == "lora" else outcome(0.8), "no seed in common"),
    "pruned": (lambda spec: Status.PRUNED if spec.seed else outcome(0.8), "pruned at step 10"),
    "running": (lambda spec: Status.RUNNING if spec.seed else outcome(0.8), "running"),
    "no evaluations": (
        lambda spec: outcome(0.8, losses=()),
        "The only comparison with the baseline lora is equivalent",
    ),
    "test score of NaN": (lambda spec: outcome(0.8, test=math.nan), "not a number"),
    "infinite losses": (lambda spec: outcome(0.8, losses=(math.inf, math.nan)), "not a number"),
    "other facts": (
        lambda spec: TrialResult.from_dict({"metrics": outcome(0.8).metrics, "history": [{"step": 1}, {}]}),
        "lora",
    ),
    "no metrics": (lambda spec: outcome(0.8), "10 trials left out"),
}


def test_trials_that_run_or_wait_are_told_from_those_not_begun() -> None:
    design = make_design(methods=FIVE, seeds=[0, 1])
    statuses = [outcome(0.8), Status.RUNNING, Status.WAITING]
    first, running, waiting, *not_begun = design.required_trials([])
    trials = [trial(design, spec, status) for spec, status in zip((first, running, waiting), statuses, strict=True)]
    chapter = chapter_of(design, trials)
    (table,) = blocks(chapter, "Failed, pruned and missing trials", ReportTable)
    told = Counter(row[4] for row in table.rows)
    assert told["running"] == told["waiting"] == 1
    assert told["not run yet"] >= len(not_begun)
    (facts,) = blocks(chapter, "Summary", KeyValues)
    assert dict(facts.pairs)["trials done"] == f"1 of {1 + told.total()}"


@pytest.mark.parametrize("fate", FATES)
def test_whatever_became_of_the_trials_there_is_a_page(fate: str) -> None:
    result, expected = FATES[fate]
    design = make_design()
    trials = ran(design, result)
    if fate == "no metrics":
        trials = [dataclasses.replace(trial, result=TrialResult({"validation": {"loss": 1.0}})) for trial in trials]
    page = render(Page("study", (chapter_of(design, trials),)))
    assert expected.replace("<", "&lt;") in page
    json.loads(data_of(page))
    assert "Run it again" in page


def data_of(page: str) -> str:
    """The figures in a page; JSON has no word for NaN."""
    text = page.partition('<script type="application/json" id="figures">')[2].partition("</script>")[0]
    assert "NaN" not in text
    assert "Infinity" not in text
    return text


def test_trials_of_other_versions_are_left_out_or_told_of() -> None:
    design = make_design()
    now = ran(design, lambda spec: outcome(0.8))
    old = [dataclasses.replace(trial, key=f"old{trial.number}") for trial in ran(design, lambda spec: outcome(0.6))]
    both = chapter_of(design, [*old, *now])
    assert "10 trials of other versions or paths are left out" in blocks(both, "Summary", Note)[0].text
    assert charts(both, "Scores")[0].series[0].y == [0.8]
    alone = chapter_of(design, old)
    assert "No trial ran with the installed versions" in blocks(alone, "Summary", Note)[0].text
    assert charts(alone, "Scores")[0].series[0].y == [0.6]
    for changes in ({"condition": Condition("x", "y")}, {"seed": 99}):
        removed = dataclasses.replace(now[0].spec, **changes)
        foreign = dataclasses.replace(now[0], key="other configuration", spec=removed)
        notes = blocks(chapter_of(design, [*now, foreign]), "Summary", Note)
        assert "1 trial in the storage belongs to no" in notes[0].text
        assert not any("left out" in note.text for note in notes)


def test_seeds_that_ran_are_told_from_those_planned() -> None:
    def seeds_of(**seeds: Any) -> str:
        design = make_design(**seeds)
        trials = ran(design, lambda spec: outcome(0.8) if spec.seed < 3 else Status.WAITING)
        (facts,) = blocks(chapter_of(design, trials), "Summary", KeyValues)
        return dict(facts.pairs)["seeds"]

    assert seeds_of(seeds={"from": 3, "until": "decided", "to": 20}) == "3 so far, up to 20"
    assert seeds_of(seeds={"from": 2, "until": "decided", "to": 3}) == "3"
    assert seeds_of(seeds=[0, 1, 2, 3]) == "4"


def test_what_is_lost_is_listed_with_its_whole_error() -> None:
    design = make_design()
    error = "ValueError: " + "x" * 900
    chapter = chapter_of(design, ran(design, lambda spec: error if spec.seed == 3 else outcome(0.8)))
    (table,) = blocks(chapter, "Failed, pruned and missing trials", ReportTable)
    assert [row[3:] for row in table.rows] == [("3", "failed", error)] * 2
    done = chapter_of(design, ran(design, lambda spec: outcome(0.8)))
    (words,) = blocks(done, "Failed, pruned and missing trials", Paragraphs)
    assert words.sentences == ("All required trials are done.",)


def test_every_trial_is_in_the_table() -> None:
    design = make_design(learning_rate={"values": [1e-3, 1e-2]})
    trials = ran(design, lambda spec: outcome(0.8 + spec.seed * 1e-2))
    (table,) = blocks(chapter_of(design, trials), "All trials", ReportTable)
    assert len(table.rows) == len(trials) == 20
    numeric = dict(zip(table.columns, table.numeric, strict=True))
    assert numeric["learning rate"]
    assert numeric["test accuracy"]
    assert not numeric["key"]
    # One task: its column would say the same in every row.
    assert "task" not in table.columns


def test_settings_are_said_once_and_the_file_runs_again(tmp_path: Path) -> None:
    design = make_design(methods=["lora", {"wide": {"method": "lora", "adapter.rank": 16}}], seeds=[0])
    chapter = chapter_of(design, ran(design, lambda spec: outcome(0.8)), storage="postgresql://me:secret@host/studies")
    differs = blocks(chapter, "Settings", ReportTable)[0]
    assert differs.columns[3:] == ("adapter.rank",)
    assert [row[3] for row in differs.rows] == ["4", "16"]
    file = next(code.text for code in blocks(chapter, "Run it again", Code) if code.title == "study.yaml")
    assert "secret" not in file
    (tmp_path / "study.yaml").write_text(file)
    again = StudyDesign(load_study_config(tmp_path / "study.yaml"))
    keys, there = ({one.keys.key(TrialSpec(group, 1e-3, 0)) for group in one.conditions} for one in (design, again))
    assert keys == there


def test_names_from_outside_are_text() -> None:
    methods = ["lora", *({said: {"method": "milora", "adapter.rank": i + 1}} for i, said in enumerate(TEXTS))]
    design = make_design(methods=methods, tasks={HOSTILE: {}, "b": {"data.max_train_samples": 9}})
    trials = ran(design, lambda spec: f"{TEXTS[2]} in a trial" if spec.seed == 4 else outcome(0.8))
    page = render(Page(HOSTILE, (dataclasses.replace(chapter_of(design, trials), title=HOSTILE),), (TEXTS[2],)))
    before_scripts = page.partition('<script type="application/json"')[0]
    assert "<script" not in before_scripts
    assert "<img" not in before_scripts
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in before_scripts
    assert "{{ 7 * 7 }}" in before_scripts
    assert "<" not in data_of(page)
    # The data, Plotly, the page's own: no other element ends here.
    assert page.count("</script>") == 3


@pytest.mark.slow
def test_a_thousand_trials_are_below_seven_megabytes(tmp_path: Path) -> None:
    file = study_file(
        tmp_path,
        methods=FIVE,
        tasks={name: {"data.max_train_samples": i} for i, name in enumerate("abcdef", start=1)},
        grid={"adapter.rank": [4, 16]},
        learning_rate={"values": [3e-4, 1e-3, 3e-3, 1e-2]},
    )
    storage, design = stored(file, lambda spec: plausible(spec, evaluations=100))
    trials = storage.trials()
    storage.close()
    assert len(trials) >= 900
    page = render(Page("study", (study_chapter("study", storage.config, trials, design, bootstrap=False),)))
    assert len(page.encode()) < 7_000_000
    assert isinstance(
        next(iter(Page("", (study_chapter("s", {}, trials, design, bootstrap=False),)).charts)), ForestPlot
    )
