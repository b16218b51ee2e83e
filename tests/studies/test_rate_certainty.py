"""How certain the chosen learning rates are."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from ailora.recipes.evaluation.classification_metrics import METRICS
from ailora.studies.bootstrap import score_resamples
from ailora.studies.comparison import Comparison, compare
from ailora.studies.rate_certainty import RateCertainty, Resampled
from ailora.studies.rate_certainty_summary import describe_uncertain_rates
from ailora.studies.summary import summarize
from ailora.studies.trial import Condition, TrialSpec
from tests.studies.sample_trials import Result, make_design, outcome, predicted, ran

BASE = Condition("base", "lora")
RATES = [1e-3, 3e-3]


def compared(value: Callable[[TrialSpec], Result], **changes: object) -> Comparison:
    """A study whose seeds all run at all rates."""
    study = {"learning_rate": {"values": RATES}, "seeds": [0, 1, 2], "seeds_at": "all"}
    design = make_design(**(study | changes))
    return compare(ran(design, value), design)


def certainty_of(scores: Mapping[float, Sequence[float]], **changes: object) -> RateCertainty:
    """The certainty of the baseline's rate, from rate -> validation scores by seed."""
    rates = {"learning_rate": {"values": [*scores]}, "seeds": list(range(len(next(iter(scores.values())))))}

    def result(spec: TrialSpec) -> Result:
        score = scores[spec.learning_rate][spec.seed]
        return outcome(score, losses=(score,))

    return compared(result, **(rates | changes)).rate_certainties[BASE]


def test_the_share_of_a_rate_is_that_of_all_draws_of_seeds() -> None:
    scores = {1e-3: [0.80, 0.83, 0.80], 3e-3: [0.82, 0.80, 0.81], 1e-2: [0.70, 0.84, 0.70]}
    found = certainty_of(scores)
    draws = list(itertools.product(range(3), repeat=3))
    chosen = [max(scores, key=lambda rate: (round(sum(scores[rate][s] for s in draw), 9), -rate)) for draw in draws]
    assert found.resampled is Resampled.SEEDS
    for rate in scores:
        # Four standard errors of 2,000 draws.
        assert found.shares[rate] == pytest.approx(chosen.count(rate) / 27, abs=4 * 0.5 / math.sqrt(2000))
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.best == 1e-3


def test_a_smaller_loss_is_chosen_and_of_equal_scores_the_smaller_rate() -> None:
    losses = {1e-3: [0.5, 0.6], 3e-3: [0.4, 0.5]}
    assert certainty_of(losses, metric="loss").shares == {1e-3: 0.0, 3e-3: 1.0}
    # 0.1 + 0.2 is not 0.3: the sums of equal scores may round apart.
    assert certainty_of({1e-3: [0.1, 0.2, 0.3], 3e-3: [0.3, 0.2, 0.1]}).share_of_best > 0.3  # type: ignore[operator]
    assert certainty_of({1e-3: [0.7, 0.7], 3e-3: [0.7, 0.7]}).shares == {1e-3: 1.0, 3e-3: 0.0}


def test_rates_without_all_seeds_that_choose_are_left_out() -> None:
    """Seeds beyond the first run at the best rate and its neighbours; `extra_seeds` choose nothing."""
    curve = dict(zip([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [0.5, 0.6, 0.7, 0.8, 0.7], strict=True))
    value = lambda spec: outcome(curve[spec.learning_rate] - (spec.seed == 9))  # noqa: E731
    study = {"learning_rate": {"values": [*curve]}, "seeds_at": "best", "extra_seeds": [9]}
    assert compared(value, **study).rate_certainties[BASE].shares == {1e-3: 0.0, 3e-3: 1.0, 1e-2: 0.0}
    failing = lambda spec: "broken" if spec.learning_rate == 1e-2 else value(spec)  # noqa: E731
    assert compared(failing, **study).rate_certainties[BASE].shares == {1e-3: 0.0, 3e-3: 1.0}


def test_a_single_rate_is_no_choice() -> None:
    assert compared(lambda spec: outcome(0.5), learning_rate={"values": [1e-3]}).rate_certainties == {}


def kept(folder: Path, right: Mapping[float, np.ndarray], seeds: int, **changes: object) -> Comparison:
    """A study whose runs keep predictions of the validation split, right at some examples."""

    def result(spec: TrialSpec) -> Result:
        own = folder / f"{spec.condition.method} {spec.learning_rate} {spec.seed}"
        labels = ["a", "b"] * (len(right[spec.learning_rate]) // 2)
        guesses = [
            label if is_right else {"a": "b", "b": "a"}[label]
            for label, is_right in zip(labels, right[spec.learning_rate], strict=True)
        ]
        if not own.exists():
            predicted(own, "validation", labels, guesses, "ab")
        return outcome(float(np.mean(right[spec.learning_rate])), folder=str(own))

    return compared(result, seeds=list(range(seeds)), **changes)


@pytest.mark.parametrize(("seeds", "resampled"), [(1, Resampled.EXAMPLES), (3, Resampled.SEEDS_AND_EXAMPLES)])
def test_validation_examples_are_drawn_where_predictions_are_kept(
    tmp_path: Path, seeds: int, resampled: Resampled
) -> None:
    """The rates disagree about 10 of 40 examples, 6 to 4; all seeds are equal, so that examples alone decide."""
    first, second = np.ones(40, bool), np.ones(40, bool)
    first[:4], second[4:10] = False, False
    found = kept(tmp_path, dict(zip(RATES, (first, second), strict=True)), seeds).rate_certainties[BASE]
    draws = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), 20_000)
    expected = np.mean(draws[:, 4:10].sum(axis=1) >= draws[:, :4].sum(axis=1))
    assert found.resampled is resampled
    assert 0.7 < expected < 0.85
    # Four standard errors of 500 draws.
    assert found.shares[1e-3] == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 500))


def test_a_metric_without_predictions_is_resampled_over_seeds(tmp_path: Path) -> None:
    right = dict(zip(RATES, (np.ones(4, bool), np.ones(4, bool)), strict=True))
    assert kept(tmp_path, right, 2, metric="loss").rate_certainties[BASE].resampled is Resampled.SEEDS


def test_the_summary_names_an_uncertain_choice() -> None:
    def value(spec: TrialSpec) -> Result:
        if spec.condition.method == "lora":
            # 10 of the 27 draws of seeds have a mean above 0.811.
            return outcome(0.8 + 0.01 * spec.seed if spec.learning_rate == 3e-3 else 0.811)
        return outcome(0.9 if spec.learning_rate == 3e-3 else 0.8)

    summary = summarize(compared(value))
    (sentence,) = summary.uncertain_rates
    assert sentence.startswith("The rate of lora is uncertain: 0.001 in ")
    assert " % of resamples and 0.003 in " in sentence
    assert sentence in summary.sentences
    table = next(table for table in summary.tables if table.title == "Certainty of the rates")
    assert table.rows[1] == ["", "ailora", "0.003", "100 %", "-", "seeds"]
    of_tasks = summarize(compared(value, tasks={"a": {}, "b": {}})).uncertain_rates
    assert [text.partition(" is ")[0] for text in of_tasks] == ["On a, the rate of lora", "On b, the rate of lora"]


def test_one_seed_without_predictions_leaves_the_certainty_unknown() -> None:
    comparison = compared(lambda spec: outcome(0.5), seeds=[0])
    summary = summarize(comparison)
    assert summary.uncertain_rates == [
        "The certainty of 2 chosen learning rates is unknown: a single seed chose, and no validation predictions are "
        "read."
    ]
    assert not [table for table in summary.tables if table.title == "Certainty of the rates"]


def test_plain_data_has_the_shares() -> None:
    data = json.loads(json.dumps(compared(lambda spec: outcome(spec.learning_rate)).to_dict()))
    assert data["groups"][0]["rate_certainty"] == {"shares": {"0.001": 0.0, "0.003": 1.0}, "resampled": "seeds"}


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews_correlation"])
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_of_counts_are_those_of_the_metric(name: str, classes: int) -> None:
    """Also where a class is never seen, never predicted, or the only one."""
    rng = np.random.default_rng(0)
    metric = METRICS[name]
    assert metric.score_confusion is not None
    for size, n_labels, n_predictions in itertools.product((1, 4, 40), (1, classes), (1, classes)):
        labels, predictions = rng.integers(n_labels, size=size), rng.integers(n_predictions, size=size)
        counts = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(1, classes, classes)
        with warnings.catch_warnings():
            # scikit-learn warns of undefined scores, which are 0.
            warnings.simplefilter("ignore")
            expected = metric.score(labels, predictions, classes)
        assert metric.score_confusion(counts, classes) == pytest.approx([expected], abs=1e-12)


def test_the_correlation_of_many_rows_does_not_overflow() -> None:
    """The product of the variances exceeds 64 bits."""
    counts = np.array([[[49_990, 10], [10, 49_990]]])
    score = METRICS["matthews_correlation"].score_confusion
    assert score is not None
    assert score(counts, 2) == pytest.approx([0.9996])


def test_a_regression_is_resampled_by_its_own_metric(tmp_path: Path) -> None:
    labels = [str(value) for value in range(6)]
    for seed, guesses in enumerate((labels, labels[::-1])):
        predicted(tmp_path / str(seed), "validation", labels, guesses, None)
    runs = [outcome(0.5, folder=str(tmp_path / str(seed))) for seed in (0, 1)]
    scores = score_resamples(runs, "validation", "pearson", n_resamples=5)
    assert scores is not None
    assert scores.shape == (5, 2)
    assert scores == pytest.approx(np.tile([1.0, -1.0], (5, 1)))


@pytest.mark.parametrize("missing", [["0", None], [None, None]])
def test_a_run_that_lacks_a_prediction_is_not_resampled(tmp_path: Path, missing: list[str]) -> None:
    """Logits that are not finite give no prediction."""
    predicted(tmp_path, "validation", ["0", "1"], missing, "01")
    assert score_resamples([outcome(0.5, folder=str(tmp_path))], "validation", "accuracy", n_resamples=5) is None


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews_correlation"])
def test_classes_are_those_of_the_training_data(tmp_path: Path, name: str) -> None:
    """Where only the second of two classes occurs, it stays the positive class of F1."""
    predicted(tmp_path, "validation", ["b"] * 4, ["b"] * 4, "ab")
    scores = score_resamples([outcome(0.5, folder=str(tmp_path))], "validation", name, n_resamples=5)
    assert scores is not None
    assert scores.tolist() == [[0.0 if name == "matthews_correlation" else 1.0]] * 5


def _damage_predictions(folder: Path) -> None:
    (folder / "predictions.parquet").write_text("no")


def _remove_result(folder: Path) -> None:
    (folder / "result.json").unlink()


def _forget_classes(folder: Path) -> None:
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": None}))


def _rename_class(folder: Path) -> None:
    file = folder / "result.json"
    file.write_text(file.read_text().replace('"b"', '"c"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_predictions, "predictions.parquet cannot be read"),
        (_remove_result, "has no result.json"),
        (_rename_class, "predictions do not fit the classes"),
        (_forget_classes, "the classes in result.json do not fit"),
    ],
)
def test_damaged_runs_are_not_resampled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], message: str
) -> None:
    predicted(tmp_path, "validation", ["a", "b"], ["a", "b"], "ab")
    damage(tmp_path)
    assert score_resamples([outcome(0.5, folder=str(tmp_path))], "validation", "accuracy", n_resamples=5) is None
    assert message in caplog.text


def test_a_choice_among_very_many_rates_names_the_most_frequent() -> None:
    rates = [1e-3 * (i + 1) for i in range(40)]
    certainty = RateCertainty(rates[0], dict.fromkeys(rates, 1 / 40), Resampled.SEEDS)
    comparison = cast(Comparison, SimpleNamespace(rate_certainties={Condition("base", "lora"): certainty}))
    assert describe_uncertain_rates(comparison) == ["The rate of lora is uncertain: 0.001 in 2 % of resamples."]
