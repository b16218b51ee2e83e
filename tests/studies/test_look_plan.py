"""Seeds until it is decided: who runs on, and that nothing depends on the order in which runs end."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ailora.errors import InputError
from ailora.studies.comparison import compare
from ailora.studies.look_plan import PlannedComparison, plan_looks
from ailora.studies.study_design import StudyDesign
from ailora.studies.summary import summarize
from ailora.studies.trial import Condition, Trial, TrialSpec
from tests.studies.sample_trials import Result, make_design, outcome, quickly, ran, trial

__all__ = ["quickly"]

RATES = {"values": [1e-3, 1e-2, 1e-1]}


def until_decided(first: int = 3, last: int = 20, **changes: Any) -> StudyDesign:
    study: dict[str, Any] = {"seeds": {"from": first, "until": "decided", "to": last}, "learning_rate": RATES}
    return make_design(**study | changes)


def noisy(gains: dict[str, float], sd: float = 0.002, lr: float = 1e-2) -> Callable[[TrialSpec], Result]:
    """Scores around 0.7, larger by the gain of each method, and smaller by far off the best rate."""

    def result(spec: TrialSpec) -> Result:
        method = spec.condition.method
        noise = np.random.default_rng([spec.seed, len(method)]).normal(0, sd)
        return outcome(0.7 + gains.get(method, 0) + noise - 0.2 * (spec.learning_rate != lr))

    return result


def n_seeds(trials: list[Trial]) -> dict[str, int]:
    """Number of seeds of each method at the best rate; they are the first ones."""
    seeds: dict[str, list[int]] = {}
    for one in trials:
        if one.spec.learning_rate == 1e-2:
            seeds.setdefault(one.spec.condition.method, []).append(one.spec.seed)
    assert all(sorted(of) == list(range(len(of))) for of in seeds.values())
    return {method: len(of) for method, of in seeds.items()}


def test_only_undecided_comparisons_run_on_with_the_baseline() -> None:
    """Far ahead: decided at five seeds. As good as the baseline: at eight. In between: never."""
    design = until_decided(methods=["lora", "ailora", "pissa", "milora"])
    trials = ran(design, noisy({"ailora": 0.2, "pissa": 0.0, "milora": 0.0095}))
    found = compare(trials, design)
    verdicts = {c.method: against.verdict for c, against in found.against_baseline.items()}
    assert verdicts == {"ailora": "better", "pissa": "equivalent", "milora": "better"}
    counts = n_seeds(trials)
    assert counts["lora"] == max(counts.values())
    assert counts["ailora"] == 5 < counts["milora"]
    assert set(counts.values()) <= {5, 8, 12, 20}
    for condition, against in found.against_baseline.items():
        assert against.judgement is not None
        assert len(against.judgement.seeds) == counts[condition.method]


def test_the_last_look_may_stay_undecided() -> None:
    design = until_decided(last=8)
    trials = ran(design, noisy({}, sd=0.05))
    assert n_seeds(trials) == {"lora": 8, "ailora": 8}
    (sentence,) = summarize(compare(trials, design)).undecided
    assert sentence.startswith("ailora is undecided after 8 seeds, the last look: between ")
    assert "so far it is equivalent within 0.0" in sentence


def test_the_rate_is_chosen_before_the_first_look_and_stays() -> None:
    """Later seeds run at the best rate of the first three alone, whatever they say."""
    design = until_decided(last=5)
    result = noisy({}, sd=0.03)
    trials = ran(design, lambda spec: result(spec) if spec.seed < 3 else outcome(0.1 * (spec.seed % 2)))
    assert {one.spec.learning_rate for one in trials if one.spec.seed > 2} == {1e-2}
    # Three rates with the first seed, and with all others of the choice; later ones at the best rate.
    assert len(trials) == 2 * (3 * 3 + 2)


@pytest.mark.parametrize("order", range(8))
def test_any_order_of_ends_runs_the_same_trials_once(order: int) -> None:
    """As several workers do: a few planned trials end, then the study is planned again."""
    design = until_decided(methods=["lora", "ailora", "pissa", "full"], tasks={"a": {}, "b": {}}, last=8)
    result = noisy({"ailora": 0.02, "pissa": 0.006}, sd=0.004)
    expected = {one.spec for one in ran(design, result)}
    rng, ended = random.Random(order), dict[TrialSpec, Trial]()
    while waiting := [spec for spec in design.required_trials([*ended.values()]) if spec not in ended]:
        for spec in rng.sample(waiting, k=rng.randint(1, min(3, len(waiting)))):
            ended[spec] = trial(design, spec, result(spec), len(ended))
    assert set(ended) == expected


def test_a_failed_seed_of_the_baseline_is_left_out_of_the_difference() -> None:
    """A verdict against the side that failed stays."""
    design = until_decided()
    result = noisy({"ailora": 0.2})
    lost = TrialSpec(Condition("base", "lora"), 1e-2, 3)
    found = compare(ran(design, lambda spec: "out of memory" if spec == lost else result(spec)), design)
    judgement = found.against_baseline[Condition("base", "ailora")].judgement
    assert judgement is not None
    assert judgement.seeds[:4] == (0, 1, 2, 4)
    assert (judgement.verdict, judgement.equivalent) == ("better", False)
    summary = summarize(found)
    failed = f"1 of {judgement.look} seeds of lora failed at its chosen rate"
    assert failed in summary.decided[0]
    assert failed in summary.outcomes[0]


def test_a_method_that_fails_at_many_seeds_is_not_better() -> None:
    """It is judged at every look, and stays undecided."""
    design = until_decided()
    result = noisy({"ailora": 0.2})
    ours = Condition("base", "ailora")
    fails = lambda spec: spec.condition == ours and spec.seed >= 3 and spec.seed % 2  # noqa: E731
    found = compare(ran(design, lambda spec: "diverged" if fails(spec) else result(spec)), design)
    against = found.against_baseline[ours]
    assert against.judgement is not None
    assert against.verdict == "undecided"
    assert against.judgement.adjusted_p is not None
    assert against.judgement.adjusted_p < 0.001
    assert against.to_dict()["failed_seeds"] == {"method": 9, "baseline": 0}
    summary, failed = summarize(found), "9 of 20 seeds of ailora failed at its chosen rate"
    assert summary.undecided == [f"ailora is undecided after 11 seeds, the last look: {failed}."]
    assert summary.outcomes[0].endswith(f": ailora is undecided; {failed}.")
    assert summary.tables[0].title == "Scores"
    assert "over the seeds that have a score of both methods" in summary.tables[0].notes[1]


def test_equal_methods_are_not_equivalent_where_one_of_them_fails() -> None:
    design = make_design(seeds=[0, 1, 2], extra_seeds=[3, 4, 5, 6, 7], learning_rate=RATES)
    result = noisy({})
    for method in ("lora", "ailora"):
        lost = TrialSpec(Condition("base", method), 1e-2, 3)
        found = compare(ran(design, lambda spec: "broken" if spec == lost else result(spec)), design)  # noqa: B023
        judgement = found.against_baseline[Condition("base", "ailora")].judgement
        assert judgement is not None
        assert judgement.adjusted_equivalence_p is not None
        assert judgement.adjusted_equivalence_p < 0.05
        assert (judgement.verdict, judgement.equivalent, judgement.missing_seeds) == ("undecided", False, None)


def test_seeds_that_failed_on_both_sides_end_a_comparison() -> None:
    design = until_decided(methods=["lora", "milora"])
    result = noisy({"milora": 0.0095})
    assert max(trial.spec.seed for trial in ran(design, result)) > 4
    lost = {("lora", 3), ("milora", 4)}

    def fails_at_two_seeds(spec: TrialSpec) -> Result:
        return "out of memory" if (spec.condition.method, spec.seed) in lost else result(spec)

    trials = ran(design, fails_at_two_seeds)
    assert max(trial.spec.seed for trial in trials) == 4
    (sentence,) = summarize(compare(trials, design)).undecided
    assert sentence.startswith("milora is undecided after 3 seeds, and stays so, because seeds of both sides failed: ")


def test_a_method_without_a_rate_does_not_hold_up_the_others() -> None:
    design = until_decided(methods=["lora", "ailora", "pissa"])
    result = noisy({"pissa": 0.2})
    found = compare(ran(design, lambda spec: "broken" if spec.condition.method == "ailora" else result(spec)), design)
    assert {c.method: one.verdict for c, one in found.against_baseline.items()} == {"ailora": None, "pissa": "better"}
    assert found.family_size == 1


def test_a_share_of_the_baseline_is_that_of_the_first_look() -> None:
    design = until_decided(margin="1%", last=5)
    trials = ran(design, lambda spec: outcome(0.8 if spec.seed < 3 else 0.4 + 0.001 * spec.seed))
    judgement = compare(trials, design).against_baseline[Condition("base", "ailora")].judgement
    assert judgement is not None
    assert judgement.margin == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": {"from": 5, "until": "decided", "to": 5}}, "seeds: to must be above from, got from 5 to 5"),
        ({"seeds": {"from": 1, "until": "decided"}}, "seeds is .* expected a list .*, or a mapping such as"),
        ({"seeds": {"from": 3, "to": 20}}, "seeds is .*until: decided"),
        ({"seeds": {"until": "tired"}}, "seeds is .*until: decided"),
        ({"extra_seeds": [7]}, "extra_seeds cannot be given"),
        ({"metric": "loss"}, "margin is missing.* largest difference of loss"),
        ({"margin": 0}, "margin is 0; expected a number above 0, or a share"),
        ({"margin": "0 %"}, "margin: expected a number above 0, or a share .* got '0 %'"),
        ({"margin": "1"}, "margin is '1'; expected"),
        ({"margin": True}, "margin is True; expected"),
    ],
)
def test_plans_that_cannot_be_judged_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        until_decided(**changes)


def test_defaults_are_three_to_twenty_seeds() -> None:
    assert make_design(seeds={"until": "decided"}).looks.counts == (3, 5, 8, 12, 20)
    assert make_design(metric="loss", margin="1%", seeds={"until": "decided", "to": 4}).looks.counts == (3, 4)


def test_the_simulation_of_the_benchmark_decides_as_studies_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/sequential_verdicts.py` judges all studies at once: the same verdicts at the same looks."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    simulation = importlib.import_module("sequential_verdicts")
    rng, seeds = np.random.default_rng(0), list(range(20))
    gains = rng.choice([0.0, 0.005, 0.01, 0.03], (100, 3, 1))
    differences = gains + rng.normal(0, 0.008, (100, 3, 20))
    decisions = simulation.decide(differences)
    comparisons = {method: PlannedComparison("base", 0.01, False, True) for method in range(3)}
    for study, of_study in enumerate(differences):
        scores = {"base": dict.fromkeys(seeds, 0.0)} | {m: dict(enumerate(of_study[m])) for m in range(3)}
        state = plan_looks(comparisons, scores, seeds, simulation.LOOKS)
        for method, judgement in state.judgements.items():
            sign = {"better": 1, "worse": -1}.get(judgement.verdict, 0)
            assert (sign, judgement.equivalent) == (
                decisions.sign[study, method],
                decisions.equivalent[study, method],
            )
            assert state.n_seeds[method] == simulation.LOOKS.counts[decisions.look[study, method]]


def test_a_failed_run_at_the_last_look_leaves_no_look_to_come() -> None:
    design = make_design(seeds={"from": 3, "until": "decided", "to": 5})
    gains = [0.03, -0.02, 0.01, -0.03]

    def result(spec: TrialSpec) -> Result:
        if spec.condition.method == "lora":
            return outcome(0.5)
        return "out of memory" if spec.seed == 4 else outcome(0.5 + gains[spec.seed])

    (sentence,) = summarize(compare(ran(design, result), design)).undecided
    assert sentence.startswith("ailora is undecided after 4 seeds, the last look: ")
