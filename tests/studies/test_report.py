"""A comparison in words and tables, and the trials as one table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ailora.studies.comparison import compare
from ailora.studies.study import trial_frame
from ailora.studies.study_design import StudyDesign
from ailora.studies.summary import StudySummary, summarize
from ailora.studies.summary_table import SummaryTable
from ailora.studies.trial import Condition, Status, Trial, TrialResult, TrialSpec
from ailora.studies.trial_storage import TrialStorage
from tests.studies.sample_trials import Result, make_design, outcome, quickly, ran, trial

__all__ = ["quickly"]

OURS = Condition("base", "ailora")
METHODS = ["lora", "ailora", "full", {"wide|er": {"method": "lora", "adapter.rank": 16}}]
BIG = {"methods": METHODS, "tasks": {"a": {}, "b": {"metric": "f1"}}, "grid": {"adapter.rank": [2, 8]}}


def select_rows(text: str) -> list[list[list[str]]]:
    """The tables of Markdown: rows of specs."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([spec.strip() for spec in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def both(value: float, **facts: Any) -> Result:
    """With F1 as well."""
    scores = {split: {"accuracy": value, "f1": value, "loss": 0.5} for split in ("validation", "test")}
    return outcome(value, losses=(0.7, 0.5), metrics=scores, **facts)


def table(summary: StudySummary, title: str) -> SummaryTable:
    return next(one for one in summary.tables if one.title == title)


def test_a_table_is_markdown_whatever_its_cells_hold() -> None:
    made = SummaryTable("T", ["a", "b|c"], [["x|y", ""], ["two\nlines \\| <b>", "p < 0.05"]], ["A note."]).to_markdown()
    rows = ["| a | b\\|c |", "| --- | --- |", "| x\\|y |  |", "| two lines \\\\\\| \\<b> | p < 0.05 |"]
    assert made == "\n".join(["### T", "", *rows, "", "A note.\n"])


#: How studies can go -> what becomes of a spec.
FATES: dict[str, Callable[[TrialSpec], Result]] = {
    "well": lambda spec: both(0.5 + 0.01 * spec.seed + len(spec.condition.method) / 100, forgetting={"rise": 0.1}),
    "nothing has run": lambda spec: Status.WAITING,
    "everything fails": lambda spec: "broken | into\ntwo",
    "the baseline fails": lambda spec: "broken" if spec.condition.method == "lora" else both(0.8),
    "one method fails": lambda spec: "broken" if spec.condition.method == "ailora" else both(0.8),
    "some are open or pruned": lambda spec: [both(0.8), Status.PRUNED, Status.RUNNING, both(0.8), both(0.7)][spec.seed],
    "scores are not finite": lambda spec: outcome(
        0.8, metrics={"validation": {"accuracy": 0.8, "f1": 0.8}, "test": {"accuracy": math.nan, "f1": math.inf}}
    ),
    "nothing was evaluated": lambda spec: both(0.8, history=[]),
}


@pytest.mark.parametrize("study", [{}, BIG, BIG | {"baseline": "full"}, {"seeds": [0]}], ids=str)
@pytest.mark.parametrize("fate", FATES)
def test_every_report_is_whole(fate: str, study: dict[str, Any]) -> None:
    base = make_design().config.base
    assert isinstance(base, dict)
    design = make_design(**{"base": {**base, "metric": ["accuracy", "f1"]}, **study})
    found = compare(ran(design, FATES[fate]), design)
    text = summarize(found).to_markdown("A study")
    assert text.startswith("## A study\n\n- ")
    for rows in select_rows(text):
        assert {len(row) for row in rows} == {len(rows[0])}
        assert len(rows) > 2
        assert set(rows[1]) == {"---"}
        assert len({*rows[0]}) == len(rows[0])
    assert not re.search(r"\b(nan|none|inf)\b", text, re.IGNORECASE)
    first = select_rows(text)[0]
    assert {row[1] for row in first[2:]} == {label.replace("|", "\\|") for label in design.methods}
    assert len(first) == 2 + len(design.conditions)
    for label in design.methods:
        assert label in "\n".join(summarize(found).outcomes)


def said(design: StudyDesign, value: Callable[[TrialSpec], float | str]) -> str:
    """The first sentence of the summary."""
    results = lambda spec: made if isinstance(made := value(spec), str) else outcome(made)  # noqa: E731
    return summarize(compare(ran(design, results), design)).sentences[0]


def test_a_sentence_says_who_is_better_worse_equivalent_and_undecided() -> None:
    values = {"lora": 0.5, "ailora": 0.9, "pissa": 0.8, "milora": 0.4, "peft:orthogonal": 0.5, "full": 0.5}
    values |= {"reversed": "broken"}

    def value(spec: TrialSpec) -> float | str:
        mean, method = values[spec.condition.method], spec.condition.method
        scale = {"lora": 0, "full": 0.1}.get(method, 0.001)
        return mean if isinstance(mean, str) else mean + scale * (-1) ** spec.seed * (spec.seed + 1)

    design = make_design(methods=list(values))
    assert said(design, value) == (
        "Against the baseline lora (accuracy 0.5000 [0.5000, 0.5000] on the test split): ailora and pissa are better; "
        "milora is worse; peft:orthogonal is equivalent; full is undecided; reversed has no seed in common."
    )


def test_a_method_whose_name_has_a_comma_stays_one_method_in_a_list() -> None:
    design = make_design(methods=["lora", {"ailora, unit size": {"method": "ailora"}}, "pissa"], seeds=[0])
    assert said(design, lambda spec: 0.5).endswith(': "ailora, unit size" and pissa are undecided.')


def test_the_baseline_alone_is_compared_with_nothing() -> None:
    design = make_design(methods=["lora"], seeds=[0])
    assert said(design, lambda spec: 0.5) == (
        "Against the baseline lora (accuracy 0.5000 on the test split): no method is compared."
    )
    assert said(design, lambda spec: "broken") == "Against the baseline lora: no method is compared."


def test_there_is_a_sentence_for_each_task_and_setting() -> None:
    design = make_design(tasks={"a": {}, "b": {}}, grid={"adapter.rank": [2, 8]}, seeds=[0])
    found = summarize(compare(ran(design, lambda spec: outcome(0.5)), design)).outcomes
    where = [sentence.split(" against")[0] for sentence in found]
    assert where == [f"On {task}, rank {rank}," for task in "ab" for rank in (2, 8)]


def test_methods_are_told_apart_where_the_baseline_has_no_setting() -> None:
    design = make_design(methods=["full", "lora"], grid={"adapter.rank": [2, 8]})
    results = lambda spec: (  # noqa: E731
        0.5 if spec.condition.method == "full" else 0.1 * spec.condition.values["adapter.rank"] + 0.001 * spec.seed
    )
    assert said(design, results).endswith(": lora (rank 8) is better; lora (rank 2) is worse.")
    found = compare(ran(design, lambda spec: outcome(results(spec))), design)
    curves = table(summarize(found), "Validation accuracy over learning rate")
    assert curves.columns == ["learning rate", "full", "lora (rank 2)", "lora (rank 8)"]


def test_the_rules_and_what_is_missing_are_said() -> None:
    design = make_design(methods=["lora", "ailora", "pissa"])
    fates = [outcome(0.8), "broken", Status.PRUNED, Status.WAITING, Status.RUNNING]
    summary = summarize(compare(ran(design, lambda spec: fates[spec.seed]), design))
    assert "a family of 0 comparisons" in summary.rule
    assert summary.progress == "3 trials are done, 3 failed, 3 were pruned, 6 are not run yet."
    loss = make_design(metric="loss", seeds=[0])
    rule = summarize(compare(ran(loss, lambda spec: outcome(0.8)), loss)).rule
    assert "a family of 0 comparisons" in rule
    assert "Equivalence is not judged for loss: the study sets no margin" in rule


def test_undecided_says_what_is_missing() -> None:
    """Seeds for equivalence, the margin that is decided, or the seeds of the look."""
    gains = [0.03, -0.02, 0.01, -0.03, 0.02]
    design = make_design(seeds=[0, 1, 2, 3], extra_seeds=[4])
    trials = ran(design, lambda spec: outcome(0.5 + (gains[spec.seed] if spec.condition == OURS else 0)))
    summary = summarize(compare(trials, design))
    # sd 0.0259: its 80 % interval is 0.0186 to 0.0502, and TOST needs (t(0.95) + t(0.9))^2 sd^2 / 0.01^2 seeds.
    assert summary.undecided == [
        "ailora is undecided after 5 seeds: between 27 and 213 more seeds would show equivalence within 0.01 if the "
        "methods are equal; so far it is equivalent within 0.0267."
    ]
    assert summary.undecided[0] in summary.sentences
    assert table(summary, "Verdicts").rows == [
        ["", "ailora", "5", "undecided", "0.871", "0.264", "0.01", "0.0267", "27 to 213"]
    ]
    trials = ran(design, lambda spec: Status.WAITING if spec.seed == 4 else outcome(0.5))
    assert summarize(compare(trials, design)).undecided == [
        "ailora is undecided after 4 seeds: it is judged at 5 seeds of both methods."
    ]
    assert summarize(
        compare(ran(design, lambda spec: outcome(0.5 + 0.02 * (spec.condition == OURS))), design)
    ).undecided == [
        "ailora is undecided after 5 seeds: its differences are all equal, so the spread over seeds is unknown."
    ]


def test_errors_are_shown_in_a_line_and_cut() -> None:
    design = make_design(seeds=[0])
    long = "ValueError: a\n  b " + "x" * 500
    found = summarize(compare(ran(design, lambda spec: long if spec.condition == OURS else outcome(0.8)), design))
    (row,) = table(found, "Failed trials").rows
    assert row[:2] == ["", "ailora"]
    assert row[2].startswith("0.001, seed 0: ValueError: a b xxx")
    assert len(row[2]) == 200


def test_a_score_is_shown_with_its_rate_seeds_interval_and_verdict() -> None:
    design = make_design()
    gain = [0.04, 0.05, 0.05, 0.05, 0.06]
    trials = ran(design, lambda spec: outcome(0.5 + (gain[spec.seed] if spec.condition == OURS else 0)))
    scores = table(summarize(compare(trials, design)), "Scores")
    assert scores.rows[0] == ["", "lora", "0.001", "5", "0.5000 [0.5000, 0.5000]", "baseline", "", ""]
    # t(4) is 2.776, sd / sqrt(5) is 0.01 / sqrt(2) / sqrt(5).
    interval = "[+0.0412, +0.0588]"
    assert scores.rows[1][3:] == ["5", "0.5500 [0.5412, 0.5588]", f"+0.0500 {interval}", "-", "better"]
    assert "accuracy (test)" in scores.notes[0]


@pytest.mark.parametrize(("missing", "shown"), [(0, "-"), (1, "0.001")])
def test_the_best_rate_is_shown_once_it_is_chosen(missing: int, shown: str) -> None:
    """Extra seeds do not change it."""
    design = make_design(seeds=[0], extra_seeds=[1])
    trials = ran(design, lambda spec: Status.RUNNING if spec.seed == missing else outcome(0.8))
    assert [row[2] for row in table(summarize(compare(trials, design)), "Scores").rows] == [shown] * 2


def test_curves_show_every_rate_and_mark_the_best() -> None:
    design = make_design(methods=["lora", {"ailora": {"learning_rate": {"values": [1e-3, 1e-2]}}}], seeds=[0, 1])
    trials = ran(design, lambda spec: outcome(0.5 + 10 * spec.learning_rate))
    curves = table(summarize(compare(trials, design)), "Validation accuracy over learning rate")
    assert curves.rows == [["0.001", "0.5100 (2) *", "0.5100 (2)"], ["0.01", "", "0.6000 (2) *"]]


def test_speed_and_cost_are_shown() -> None:
    design = make_design(seeds=[0, 1])
    ours = {0: (0.9, 0.5, 0.4, 0.4), 1: (0.9, 0.9, 0.9, 0.9)}
    trials = ran(
        design, lambda spec: outcome(0.8, losses=ours[spec.seed] if spec.condition == OURS else (0.9, 0.8, 0.6, 0.5))
    )
    made = summarize(compare(trials, design))
    assert table(made, "Steps to the baseline's final loss").rows == [["", "ailora", "1 of 2", "0.50", "4", "not run"]]
    assert table(made, "Cost").rows[1] == ["", "ailora", "1,234", "0.25", "200", "256", "4", "-"]
    again = [*trials, trial(design, TrialSpec(OURS, 1e-3, 0, 20), outcome(0.8, losses=(0.6,)))]
    row = table(summarize(compare(again, design)), "Steps to the baseline's final loss").rows[0]
    assert row[-1] == "no"


def test_the_choice_that_makes_the_differences_is_named_for_each_task() -> None:
    design = make_design(
        tasks={"first": {}, "second": {}}, grid={"adapter.rank": [2, 4]}, learning_rate={"values": [1e-4, 1e-3, 1e-2]}
    )

    def result(spec: TrialSpec) -> Result:
        loud = (
            spec.learning_rate == 1e-3 if spec.condition.task == "first" else spec.condition.values["adapter.rank"] == 4
        )
        return outcome(0.9 if loud else 0.5)

    comparison = compare(ran(design, result), design)
    assert {task: measured[0].name for task, measured in comparison.importances.items()} == {
        "first": "learning rate",
        "second": "rank",
    }
    assert comparison.to_dict()["importances"]["second"][0]["share"] > 0.9
    made = summarize(comparison)
    assert [re.split(r" \d+ %", sentence)[0] for sentence in made.importances] == [
        f"Explained share of the differences between validation scores on {task}: {choice}"
        for task, choice in (("first", "learning rate"), ("second", "rank"))
    ]
    rows = table(made, "Which choices mattered").rows
    assert {tuple(row[:2]) for row in rows} == {
        (task, choice) for task in ("first", "second") for choice in ("learning rate", "method", "rank")
    }


def test_few_results_do_not_tell_which_choice_mattered() -> None:
    design = make_design()
    made = summarize(compare(ran(design, lambda spec: outcome(0.1 * spec.seed)), design))
    assert made.importances == []
    assert "Which choices mattered" not in [table.title for table in made.tables]


def test_the_best_rank_stands_first() -> None:
    design = make_design(methods=["lora", "ailora", "pissa"], tasks={"a": {}, "b": {}}, seeds=[0])
    value = {"lora": 0.5, "ailora": 0.9, "pissa": 0.7}
    made = summarize(compare(ran(design, lambda spec: outcome(value[spec.condition.method])), design))
    assert table(made, "Average rank").rows == [["ailora", "1.00"], ["pissa", "2.00"], ["lora", "3.00"]]


# --- all trials as one table ------------------------------------------------------------------------------------------

COLUMNS = [
    *("key", "task", "method", "adapter.rank", "learning_rate", "seed", "max_steps", "status", "attempts"),
    *("validation_accuracy", "validation_loss", "test_accuracy", "test_loss"),
    *("seconds", "init_seconds", "train_seconds", "steps", "trainable_parameters", "total_parameters"),
    *("adapter_bytes", "peak_memory_bytes", "folder", "error"),
]


def stored(trials: list[Trial]) -> TrialStorage:
    return cast(TrialStorage, SimpleNamespace(trials=lambda: trials))


def test_there_is_a_row_for_every_trial() -> None:
    design = make_design(methods=["lora", "full"], grid={"adapter.rank": [2, 8]}, seeds=[0, 1])
    trials = ran(design, lambda spec: "broken" if spec.seed else outcome(0.8, test=0.7))
    made = trial_frame(stored(trials), design)
    assert set(made.columns) == set(COLUMNS)
    assert list(trial_frame(stored(trials[:1]), design).columns) == COLUMNS
    assert len(made) == len(trials) == 3 * 2
    assert made["key"].is_unique
    assert sorted(made["adapter.rank"].dropna()) == [2, 2, 8, 8]
    assert made.loc[made["method"] == "full", "adapter.rank"].isna().all()
    done, failed = made[made["seed"] == 0], made[made["seed"] == 1]
    assert (done["status"] == "done").all()
    assert (done["test_accuracy"] == 0.7).all()
    assert (failed["error"] == "broken").all()
    assert failed["validation_loss"].isna().all()


def test_trials_of_other_versions_and_studies_are_left_out() -> None:
    design = make_design(seeds=[0])
    other = make_design(methods=["lora", "pissa"], seeds=[0])
    trials = [*ran(design, lambda spec: outcome(0.8)), *ran(other, lambda spec: outcome(0.8))]
    old = Trial(9, "0" * 20, trials[0].spec, Status.COMPLETE, result=TrialResult({}))
    assert list(trial_frame(stored([*trials[:2], trials[3], old]), design)["method"]) == ["lora", "ailora"]


def test_forgetting_has_a_column() -> None:
    design = make_design(seeds=[0])
    made = trial_frame(stored(ran(design, lambda spec: outcome(0.8, forgetting={"rise": 0.25, "before": 1.0}))), design)
    assert list(made["forgetting"]) == [0.25, 0.25]
