"""What a study has found: every method at its best learning rate against the baseline."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ailora.studies.comparison import BaselineComparison, compare
from ailora.studies.method_results import metric_point
from ailora.studies.statistics import estimate, holm
from ailora.studies.study_design import StudyDesign
from ailora.studies.summary import summarize
from ailora.studies.trial import Condition, Status, TrialSpec
from tests.studies.sample_trials import Result, make_design, outcome, predicted, quickly, ran, trial

__all__ = ["quickly"]

OURS, BASE = Condition("base", "ailora"), Condition("base", "lora")
TSV = {"train": "a.tsv", "validation": "b.tsv", "text": ["sentence"]}


def against(design: StudyDesign, gains: Sequence[float]) -> BaselineComparison:
    """A method whose score is larger than the baseline's by so much, seed by seed; the loss is larger by as much."""

    def result(spec: TrialSpec) -> Result:
        value = 0.5 + 0.01 * spec.seed + (gains[spec.seed] if spec.condition == OURS else 0)
        return outcome(value, losses=(value,))

    return compare(ran(design, result), design).against_baseline[OURS]


@pytest.mark.parametrize(
    ("gains", "verdict", "turned"),
    [
        ((0.05, 0.06, 0.05, 0.04, 0.05), "better", "worse"),
        ((-0.05, -0.06, -0.05, -0.04, -0.05), "worse", "better"),
        ((0.004, 0.005, 0.004, 0.003, 0.004), "better and equivalent", "worse and equivalent"),
        ((0.001, -0.002, 0.002, -0.001, 0.001), "equivalent", "equivalent"),
        ((0.05, -0.06, 0.05, -0.04, 0.01), "undecided", "undecided"),
    ],
)
def test_five_seeds_are_better_worse_equivalent_or_undecided(gains: Sequence[float], verdict: str, turned: str) -> None:
    assert against(make_design(), gains).verdict == verdict
    assert against(make_design(metric="loss", margin=0.01), gains).verdict == turned


def test_without_a_margin_equivalence_is_not_judged() -> None:
    """A loss has no scale of its own."""
    compared = against(make_design(metric="loss"), (0.001, -0.002, 0.002, -0.001, 0.001))
    assert compared.judgement is not None
    assert (compared.verdict, compared.judgement.equivalent, compared.judgement.margin) == ("undecided", None, None)


def test_a_margin_can_be_a_share_of_the_baseline() -> None:
    compared = against(make_design(margin="10%"), (0.04, 0.05, 0.04, 0.03, 0.04))
    assert compared.judgement is not None
    # The baseline has 0.50 to 0.54.
    assert compared.judgement.margin == pytest.approx(0.052)
    assert compared.verdict == "better and equivalent"


def test_a_single_seed_is_undecided_and_no_part_of_the_family() -> None:
    compared = against(make_design(seeds=[0]), [0.1])
    assert compared.judgement is not None
    assert (compared.verdict, compared.judgement.adjusted_p) == ("undecided", None)


def test_a_study_that_is_not_complete_is_undecided() -> None:
    """Four of five seeds would show a difference: the look is at five."""
    design = make_design(seeds=[0, 1, 2, 3], extra_seeds=[4])
    trials = ran(
        design,
        lambda spec: (
            Status.RUNNING if spec.seed == 4 else outcome(0.5 + (spec.condition == OURS) * (0.1 + 0.001 * spec.seed))
        ),
    )
    found = compare(trials, design)
    compared = found.against_baseline[OURS]
    assert compared.difference is not None
    assert (compared.difference.seeds, compared.judgement, compared.verdict) == ((0, 1, 2, 3), None, "undecided")
    assert found.family_size == 1


def test_the_validation_split_chooses_and_the_test_split_is_reported() -> None:
    design = make_design(learning_rate={"values": [1e-3, 1e-2]})
    results = {1e-3: outcome(0.9, test=0.6), 1e-2: outcome(0.8, test=0.7)}
    found = compare(ran(design, lambda spec: results[spec.learning_rate]), design).results[OURS]
    assert found.search.best == 1e-3
    assert found.score == estimate([0.6] * 5)
    assert {rate: (one.mean, one.n) for rate, one in found.curve.items()} == {1e-3: (0.9, 5), 1e-2: (0.8, 5)}


def test_without_a_test_split_the_validation_split_is_reported() -> None:
    base = {**described_base(), "data": TSV}
    design = make_design(base=base)
    assert design.report_split(OURS) == "validation"
    found = compare(ran(design, lambda spec: outcome(0.9, test=0.1)), design)
    assert found.results[OURS].score == estimate([0.9] * 5)


def described_base() -> dict[str, object]:
    base = make_design().config.base
    assert isinstance(base, dict)
    return base


def test_the_smaller_loss_is_the_best_rate() -> None:
    design = make_design(metric="loss", learning_rate={"values": [1e-3, 1e-2]})
    trials = ran(design, lambda spec: outcome(0.9 if spec.learning_rate == 1e-2 else 0.1, losses=(spec.learning_rate,)))
    found = compare(trials, design).results[OURS]
    assert found.search.best == 1e-3
    assert found.score == estimate([1e-3] * 5)


def test_what_did_not_end_well_is_counted() -> None:
    design = make_design(learning_rate={"values": [1e-4, 1e-3, 1e-2]}, seeds=[0, 1], seeds_at="all")
    fates = {
        (1e-4, 0): Status.PRUNED,
        (1e-4, 1): Status.WAITING,
        (1e-2, 0): "diverged: the loss is NaN",
        (1e-2, 1): Status.RUNNING,
    }
    trials = ran(design, lambda spec: fates.get((spec.learning_rate, spec.seed), outcome(0.8)))
    found = compare(trials, design).results[OURS]
    assert (*(found.status_counts[s] for s in (Status.COMPLETE, Status.FAIL, Status.PRUNED)), found.n_open) == (
        2,
        1,
        1,
        2,
    )
    assert found.errors == ["0.01, seed 0: diverged: the loss is NaN"]
    assert found.search.best is None


def test_a_method_whose_runs_all_fail_has_nothing_and_the_others_are_compared() -> None:
    design = make_design(methods=["lora", "ailora", "pissa"])
    found = compare(ran(design, lambda spec: "broken" if spec.condition == OURS else outcome(0.8)), design)
    failed, compared = found.results[OURS], found.against_baseline[OURS]
    assert (failed.search.best, failed.score, failed.good_range, failed.curve, failed.at_best) == (
        None,
        None,
        None,
        {},
        {},
    )
    assert failed.search.ended
    assert (compared.difference, compared.judgement, compared.verdict, compared.time_to_loss) == (
        None,
        None,
        None,
        None,
    )
    assert found.against_baseline[Condition("base", "pissa")].difference is not None
    assert found.family_size == 1


def test_a_baseline_whose_runs_all_fail_leaves_nothing_to_compare_with() -> None:
    design = make_design()
    found = compare(ran(design, lambda spec: "broken" if spec.condition == BASE else outcome(0.8)), design)
    assert found.results[OURS].score is not None
    assert found.against_baseline[OURS].difference is None
    assert found.family_size == 0


def test_a_study_that_nobody_has_run_is_compared_as_well() -> None:
    design = make_design()
    for trials in ([], ran(design, lambda spec: Status.WAITING)):
        found = compare(trials, design)
        assert found.against_baseline[OURS].difference is None
        assert not found.results[OURS].search.ended


def test_a_seed_that_the_baseline_misses_is_left_out_of_the_difference() -> None:
    design = make_design(seeds=[0, 1], extra_seeds=[7, 8])
    missing = TrialSpec(BASE, 1e-3, 7)
    found = compare(ran(design, lambda spec: "out of memory" if spec == missing else outcome(0.8)), design)
    assert list(found.results[OURS].at_best) == [0, 1, 7, 8]
    difference = found.against_baseline[OURS].difference
    assert difference is not None
    assert difference.seeds == (0, 1, 8)


def test_a_rate_at_which_a_run_failed_is_a_gap_in_the_good_range() -> None:
    """Whether all of its runs failed, or one of the seeds that choose the best."""
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    design = make_design(learning_rate={"values": rates}, seeds=[0, 1], seeds_at="all")
    for lost in ({0}, {1}, {0, 1}):
        better = {1e-4: 0.8, 1e-3: 0.81, 1e-2: 0.99, 1e-1: 0.81}
        trials = ran(
            design,
            lambda spec: (
                "diverged"
                if spec.learning_rate == 1e-2 and spec.seed in lost  # noqa: B023
                else outcome(better[spec.learning_rate])  # noqa: B023
            ),
        )
        found = compare(trials, design).results[OURS]
        assert found.good_range is not None
        assert (found.good_range.low, found.good_range.best, found.good_range.high) == (1e-4, 1e-3, 1e-3)


def test_the_good_range_is_around_the_best_rate_and_over_the_same_seeds() -> None:
    """A far rate with a lucky first seed is not the peak; the seeds beyond the first are worse at every rate."""
    first = {1e-4: 0.80, 1e-3: 0.90, 1e-2: 0.895, 1e-1: 0.899, 1.0: 0.80}
    design = make_design(learning_rate={"values": [*first]}, seeds=[0, 1, 2], extra_seeds=[7])
    found = compare(ran(design, lambda spec: outcome(first[spec.learning_rate] - 0.03 * (spec.seed > 0))), design)
    result = found.results[OURS]
    assert result.good_range is not None
    assert (result.good_range.low, result.good_range.best, result.good_range.high) == (1e-3, 1e-3, 1e-1)
    # Best and neighbours: three seeds and an extra one; others: the first.
    assert [point.n for point in result.curve.values()] == [3, 4, 3, 1, 1]
    assert {rate: [*scores] for rate, scores in result.selection_scores.items()}[1e-1] == [0]


def test_rates_that_left_the_grid_are_not_compared() -> None:
    score = lambda spec: outcome({1e-3: 0.80, 3e-3: 0.90, 1e-2: 0.82}[spec.learning_rate])  # noqa: E731
    before = make_design(learning_rate={"values": [1e-3, 3e-3, 1e-2]}, seeds=[0, 1, 2])
    design = make_design(learning_rate={"values": [1e-3, 1e-2]}, seeds=[0, 1, 2])
    found = compare(ran(before, score), design)
    result = found.results[OURS]
    assert result.good_range is not None
    assert (result.search.best, result.good_range.best) == (1e-2, 1e-2)
    assert list(result.curve) == [1e-3, 1e-2]
    assert list(found.rate_certainties[OURS].shares) == [1e-3, 1e-2]


def test_importance_compares_all_rates_over_the_same_seeds() -> None:
    """The seeds beyond the first lower the scores of the best rates; only the rates make a difference."""
    values = [1e-5, 1e-4, 1e-3, 1e-2]
    design = make_design(learning_rate={"values": values}, seeds=[0, 1])
    found = compare(ran(design, lambda spec: outcome(0.5 + values.index(spec.learning_rate) / 10)), design)
    lower = compare(
        ran(design, lambda spec: outcome(0.5 + values.index(spec.learning_rate) / 10 - 0.4 * spec.seed)), design
    )
    assert found.importances == lower.importances != {}


def test_an_extra_seed_that_failed_does_not_undo_the_best_rate() -> None:
    design = make_design(learning_rate={"values": [1e-3, 1e-2]}, seeds=[0], extra_seeds=[7])
    trials = ran(
        design, lambda spec: "killed" if spec.seed == 7 else outcome(0.9 if spec.learning_rate == 1e-3 else 0.1)
    )
    found = compare(trials, design).results[OURS]
    assert found.search.best == 1e-3
    assert found.good_range is not None
    assert found.good_range.best == 1e-3


def test_a_point_is_a_hundredth_or_one() -> None:
    assert (metric_point("accuracy"), metric_point("loss"), metric_point("bleu")) == (0.01, 0.01, 1.0)


# --- tasks and points -------------------------------------------------------------------------------------------------


def test_ranks_are_means_over_tasks() -> None:
    """A task's own metric decides what is better in it; equal scores share a rank; who has none is last."""
    tasks = {"a": {}, "b": {"metric": "f1"}, "c": {}}
    design = make_design(methods=["lora", "ailora", "pissa"], tasks=tasks, seeds=[0])
    accuracy = {("a", "lora"): 0.7, ("a", "ailora"): 0.9, ("a", "pissa"): 0.8, ("c", "lora"): 0.5, ("c", "pissa"): 0.5}

    def result(spec: TrialSpec) -> Result:
        if (spec.condition.task, spec.condition.method) == ("c", "ailora"):
            return "broken"
        made = outcome(accuracy.get((spec.condition.task, spec.condition.method), 0.6))
        f1 = {"lora": 0.3, "ailora": 0.1, "pissa": 0.2}[spec.condition.method]
        return dataclasses.replace(made, metrics={split: {**one, "f1": f1} for split, one in made.metrics.items()})

    found = compare(ran(design, result), design)
    assert found.average_ranks == {
        "lora": (3 + 1 + 1.5) / 3,
        "ailora": (1 + 3 + 3) / 3,
        "pissa": pytest.approx((2 + 2 + 1.5) / 3),
    }


def test_methods_that_have_not_run_yet_are_not_ranked() -> None:
    design = make_design(methods=["lora", "ailora", "pissa", "milora"], tasks={"a": {}, "b": {}}, seeds=[0])
    scores = {"lora": 0.7, "ailora": 0.9, "pissa": 0.8}

    def result(spec: TrialSpec) -> Result:
        method = spec.condition.method
        return (
            Status.WAITING
            if (spec.condition.task, method) == ("b", "pissa") or method == "milora"
            else outcome(scores[method])
        )

    found = compare(ran(design, result), design)
    assert found.average_ranks == {"lora": 2.0, "ailora": 1.0}
    summary = summarize(found)
    table = next(table for table in summary.tables if table.title == "Average rank")
    assert table.notes == ["Not ranked, because a best rate is not yet known everywhere: pissa, milora."]
    assert summary.outcomes[1].endswith(": ailora is undecided; pissa and milora have not run yet.")


def test_a_single_task_has_no_average_rank() -> None:
    design = make_design(seeds=[0])
    assert compare(ran(design, lambda spec: outcome(0.8)), design).average_ranks == {}


RANKS = {"adapter.rank": [2, 8]}


def spread(spec: TrialSpec) -> float:
    """A method other than the baseline varies over seeds."""
    return 0.001 * spec.seed * (spec.condition.method != "lora")


def at_rank(method: str, rank: int) -> Condition:
    return Condition("base", method, (("adapter.rank", str(rank)),))


def test_each_point_of_the_grid_has_its_own_best_and_its_own_baseline() -> None:
    design = make_design(grid=RANKS, learning_rate={"values": [1e-3, 1e-2]})
    best = {at_rank("lora", 2): 1e-2, at_rank("ailora", 2): 1e-3, at_rank("lora", 8): 1e-3, at_rank("ailora", 8): 1e-2}
    top = {at_rank("lora", 2): 0.5, at_rank("ailora", 2): 0.6, at_rank("lora", 8): 0.9, at_rank("ailora", 8): 0.8}
    trials = ran(
        design,
        lambda spec: outcome(
            top[spec.condition] - 0.1 * (spec.learning_rate != best[spec.condition]) + spread(spec),
        ),
    )
    found = compare(trials, design)
    assert {condition: one.search.best for condition, one in found.results.items()} == best
    assert {condition: one.verdict for condition, one in found.against_baseline.items()} == {
        at_rank("ailora", 2): "better",
        at_rank("ailora", 8): "worse",
    }
    assert found.average_ranks == {"lora": 1.5, "ailora": 1.5}


def scored(spec: TrialSpec) -> Result:
    """Full fine-tuning between the ranks: 0.7; a method at its rank: 0.2 to 0.9."""
    if spec.condition.method == "full":
        return outcome(0.7)
    rank = spec.condition.values["adapter.rank"]
    return outcome(0.1 * rank + (0.1 if spec.condition.method == "ailora" else 0) + spread(spec))


def test_full_fine_tuning_knows_no_rank_and_is_ranked_at_all_of_them() -> None:
    design = make_design(methods=["lora", "ailora", "full"], grid=RANKS)
    found = compare(ran(design, scored), design)
    assert Condition("base", "full") in found.against_baseline
    assert found.average_ranks == {"lora": (3 + 2) / 2, "ailora": (2 + 1) / 2, "full": (1 + 3) / 2}


def test_methods_are_ranked_at_their_points_when_the_baseline_has_none() -> None:
    design = make_design(methods=["full", "lora", "ailora"], grid=RANKS)
    found = compare(ran(design, scored), design)
    assert set(found.against_baseline) == {at_rank(method, rank) for method in ("lora", "ailora") for rank in (2, 8)}
    assert found.average_ranks == {"lora": (3 + 2) / 2, "ailora": (2 + 1) / 2, "full": (1 + 3) / 2}


def test_a_key_that_all_methods_set_makes_no_further_points() -> None:
    methods = [{name: {"adapter.rank": 4}} for name in ("lora", "ailora")]
    design = make_design(methods=methods, grid=RANKS, seeds=[0])
    assert compare(ran(design, lambda spec: outcome(0.8)), design).average_ranks == {}


def test_holms_family_is_every_comparison_of_the_report_that_has_a_p() -> None:
    design = make_design(methods=["lora", "ailora", "pissa", "milora"], tasks={"a": {}, "b": {}})

    def result(spec: TrialSpec) -> Result:
        if spec.condition == Condition("b", "milora"):
            return "broken"
        size = {"lora": 0, "ailora": 1, "pissa": 2, "milora": 3}[spec.condition.method] + (spec.condition.task == "b")
        return outcome(0.5 + 0.01 * size * (1 + math.sin(spec.seed * (1 + size))))

    found = compare(ran(design, result), design)
    assert found.family_size == 2 * 3 - 1
    judged = {str(g): one.judgement for g, one in found.against_baseline.items() if one.judgement}
    for raw, adjusted in (("p_value", "adjusted_p"), ("equivalence_p", "adjusted_equivalence_p")):
        p_values = {name: getattr(judgement, raw) for name, judgement in judged.items()}
        assert {name: getattr(judgement, adjusted) for name, judgement in judged.items()} == holm(p_values)


# --- the bootstrap of kept predictions --------------------------------------------------------------------------------


def kept(
    folder: Path, guesses: dict[str, list[list[str]]], labels: list[str], classes: Sequence[str], **study: object
) -> BaselineComparison:
    """A study whose runs have left their predictions of the test split, by method and seed."""
    base = {**described_base(), "metric": ["accuracy", "f1"]}
    design = make_design(seeds=list(range(len(guesses["lora"]))), base=base, **study)

    def result(spec: TrialSpec) -> Result:
        own = folder / spec.condition.method / str(spec.seed)
        if not own.exists():
            # On the validation split all is wrong: it must not be looked at.
            predicted(own, "validation", labels[::-1], labels, classes)
            predicted(own, "test", labels, guesses[spec.condition.method][spec.seed], classes)
        scores = {split: {"accuracy": 0.8, "f1": 0.8, "loss": 0.5} for split in ("validation", "test")}
        return outcome(0.8, metrics=scores, folder=str(own))

    return compare(ran(design, result), design).against_baseline[OURS]


def drawn(right: float, labels: list[str], rng: np.random.Generator) -> list[str]:
    other = {name: [one for one in sorted({*labels}) if one != name] for name in labels}
    return [label if rng.random() < right else str(rng.choice(other[label])) for label in labels]


def test_the_bootstrap_is_around_the_difference_of_accuracies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [str(name) for name in rng.choice(["bad", "good", "so-so"], 100)]
    guesses = {name: [drawn(right, labels, rng) for _ in range(3)] for name, right in (("lora", 0.6), ("ailora", 0.9))}
    found = kept(tmp_path, guesses, labels, ["bad", "good", "so-so"]).bootstrap
    assert found is not None
    right = {name: np.mean([np.array(one) == labels for one in each]) for name, each in guesses.items()}
    assert found.mean == pytest.approx(right["ailora"] - right["lora"], abs=1e-12)
    assert found.low < found.mean < found.high
    assert found.low > 0


@pytest.mark.parametrize(("first", "second"), [("no", "yes"), ("9", "10")])
def test_f1_of_two_classes_is_that_of_the_second_in_the_run_s_order(tmp_path: Path, first: str, second: str) -> None:
    """Whole numbers are ordered as numbers. Never predicted: 0; all found among twice as many: 2/3."""
    labels = [second] * 30 + [first] * 70
    guesses = {"lora": [[first] * 100], "ailora": [[second] * 60 + [first] * 40]}
    found = kept(tmp_path, guesses, labels, [first, second], metric="f1").bootstrap
    assert found is not None
    assert found.mean == pytest.approx(2 / 3)


def test_a_class_that_the_split_lacks_can_still_be_predicted(tmp_path: Path) -> None:
    """Three classes, two of them among the labels: F1 stays the mean over classes."""
    labels = ["a"] * 5 + ["b"] * 5
    found = kept(tmp_path, {"lora": [["c"] * 10], "ailora": [labels]}, labels, "abc", metric="f1").bootstrap
    assert found is not None
    assert found.mean == 1.0


def test_without_predictions_of_all_runs_on_the_same_rows_there_is_no_bootstrap(tmp_path: Path) -> None:
    labels = ["a", "b"] * 5
    guesses = {"lora": [labels, labels], "ailora": [labels[::-1], labels]}
    assert kept(tmp_path, guesses, labels, "ab").bootstrap is not None
    assert kept(tmp_path, guesses, labels, "ab", metric="loss").bootstrap is None
    file = tmp_path / "lora" / "1" / "predictions.parquet"
    file.unlink()
    assert kept(tmp_path, guesses, labels, "ab").bootstrap is None
    predicted(file.parent, "validation", labels, labels, "ab")
    assert kept(tmp_path, guesses, labels, "ab").bootstrap is None
    predicted(file.parent, "test", labels[:4], labels[:4], "ab")
    assert kept(tmp_path, guesses, labels, "ab").bootstrap is None


def test_the_bootstrap_can_be_left_out(tmp_path: Path) -> None:
    design = make_design(seeds=[0])
    predicted(tmp_path, "test", ["a", "b"], ["a", "b"], "ab")
    trials = ran(design, lambda spec: outcome(0.8, folder=str(tmp_path)))
    assert compare(trials, design).against_baseline[OURS].bootstrap is not None
    assert compare(trials, design, bootstrap=False).against_baseline[OURS].bootstrap is None


# --- as plain data ----------------------------------------------------------------------------------------------------


def test_a_comparison_is_json_and_says_what_it_found() -> None:
    design = make_design(grid=RANKS, methods=["lora", "ailora", "full"])
    trials = ran(design, lambda spec: "broken" if spec.condition.method == "full" else scored(spec))
    data = json.loads(json.dumps(compare(trials, design).to_dict(), allow_nan=False))
    assert (data["baseline"], data["family"], len(data["groups"])) == ("lora", 2, 5)
    ours = next(one for one in data["groups"] if one["method"] == "ailora" and one["point"] == {"adapter.rank": 8})
    assert (ours["metric"], ours["split"], ours["best_learning_rate"]) == ("accuracy", "test", 1e-3)
    assert ours["scores"] == {str(seed): pytest.approx(0.9 + 0.001 * seed) for seed in range(5)}
    assert ours["trials"] == {"ended": 5, "failed": 0, "pruned": 0, "open": 0}
    assert (ours["trainable_parameters"], ours["train_seconds"], ours["forgetting"]) == (1234, 8.0, None)
    compared = ours["against_baseline"]
    assert (compared["verdict"], compared["equivalent"], compared["margin"]) == ("better", False, 0.01)
    assert compared["difference"]["mean"] == pytest.approx(0.102)
    assert compared["smallest_margin"] > compared["difference"]["high"] - 0.001
    broken = next(one for one in data["groups"] if one["method"] == "full")
    assert (broken["best_learning_rate"], broken["score"], broken["complete"]) == (None, None, True)
    assert broken["errors"] == ["0.001, seed 0: broken"]
    assert "against_baseline" not in next(one for one in data["groups"] if one["method"] == "lora")


def test_a_number_that_is_not_finite_is_none_in_json() -> None:
    design = make_design(seeds=[0, 1])
    trials = ran(design, lambda spec: outcome(0.8, test=math.nan if spec.condition == OURS else 0.8))
    found = compare(trials, design)
    assert found.against_baseline[OURS].verdict == "undecided"
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    ours = next(one for one in data["groups"] if one["method"] == "ailora")
    assert ours["score"] == {"mean": None, "sd": None, "n": 2, "low": None, "high": None}
    assert ours["scores"] == {"0": None, "1": None}


def test_forgetting_is_the_mean_rise() -> None:
    design = make_design(seeds=[0, 1])
    trials = ran(design, lambda spec: outcome(0.8, forgetting={"rise": 0.1 * (1 + spec.seed)}))
    assert compare(trials, design).results[OURS].forgetting == pytest.approx(0.15)
    assert compare(ran(design, lambda spec: outcome(0.8)), design).results[OURS].forgetting is None
    assert trial(design, TrialSpec(OURS, 1e-3, 0), outcome(0.8)).ended
