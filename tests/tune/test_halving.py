"""Which candidates go on, and which wins, follows from results alone: not from workers, their order or kills."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.trial import Status, TrialResult
from ailora.studies.trial_runner import TrialError
from ailora.tune.halving import enqueue_next, find_progress, work_on_search
from ailora.tune.tune_result import build_result
from tests.tune.conftest import Search


def _loss(config: RunConfig, step: int) -> float:
    """Loss that is least at 2e-3, the same for all choices; it falls with the steps."""
    return abs(math.log10(config.training["learning_rate"] / 2e-3)) + 1 / step


def _result(config: RunConfig, prefix: RunPrefix) -> TrialResult:
    return TrialResult({"validation": {"loss": _loss(config, prefix.step), "accuracy": 0.5}}, seconds=0.0)


def test_the_best_of_each_rung_resume_and_the_best_at_the_end_wins(search: Search) -> None:
    storage, design = search(budget="5x")
    folders: dict[str, list[int]] = {}

    def execute(config: RunConfig, prefix: RunPrefix) -> TrialResult:
        folders.setdefault(config.output, []).append(prefix.step)
        assert prefix.total_steps == 24
        return _result(config, prefix)

    count = work_on_search(storage, design, execute)
    assert design.plan is not None
    assert count == sum(design.plan.counts)
    steps = list(design.plan.steps)
    # Each candidate has one folder, and trains each rung once, in order.
    assert all(trained == steps[: len(trained)] for trained in folders.values())
    assert [sum(len(t) > n for t in folders.values()) for n in range(len(steps))] == list(design.plan.counts)
    progress = find_progress(storage.trials(), design)
    best = min(design.candidates, key=lambda c: abs(math.log10(c.learning_rate / 2e-3)))
    assert progress.winner == best


def test_ties_go_to_the_first_candidates(search: Search) -> None:
    storage, design = search()
    work_on_search(storage, design, lambda config, prefix: TrialResult({"validation": {"loss": 0.5}}, seconds=0.0))
    progress = find_progress(storage.trials(), design)
    assert [[candidate.number for candidate in rung.ranking] for rung in progress.rungs] == [
        list(range(count)) for _, count in design.rungs
    ]


def test_a_metric_as_goal_decides_at_the_end_only(search: Search) -> None:
    """Early in a run, its differences are noise: here it is best at the smallest rate until the last step."""
    storage, design = search(budget="5x", goal="accuracy")
    total = design.total_steps

    def execute(config: RunConfig, prefix: RunPrefix) -> TrialResult:
        rate = config.training["learning_rate"]
        accuracy = 1 - abs(math.log10(rate / 5e-3)) / 10 if prefix.step == total else -math.log10(rate)
        return TrialResult({"validation": {"loss": _loss(config, prefix.step), "accuracy": accuracy}}, seconds=0.0)

    work_on_search(storage, design, execute)
    progress = find_progress(storage.trials(), design)
    *before, last = progress.rungs
    for rung in before:
        assert rung.ranking == sorted(rung.trials, key=lambda c: (abs(math.log10(c.learning_rate / 2e-3)), c.number))
    assert last.ranking == sorted(last.trials, key=lambda c: (abs(math.log10(c.learning_rate / 5e-3)), c.number))
    assert progress.winner is not None
    result = build_result(design, progress, progress.winner)
    assert [*result.ranking_metrics.values()] == ["loss"] * len(before) + ["accuracy"]
    assert result.winner.values[before[0].step] == pytest.approx(-before[0].scores[progress.winner])


def test_ranks_that_scaling_makes_equal_are_tried_once(search: Search) -> None:
    """Equal runs would take places of each other, and share a folder that one survivor needs."""
    storage, design = search(
        budget="5x", rank=[1, 2], learning_rate={"values": [1e-4, 1e-3, 1e-2]}, roles=[["query"], "all"]
    )
    ranks = {str(c.values): config.adapter.rank for c, config in design.space.configs.items()}
    assert len(ranks) == 4
    assert list(ranks.values()).count(1) == 3
    keys = [design.keys.key(design.spec(candidate, 3)) for candidate in design.candidates]
    assert len(set(keys)) == len(keys)
    checkpoints: list[tuple[int, bool]] = []

    def execute(config: RunConfig, prefix: RunPrefix) -> TrialResult:
        folder = Path(config.output) / "checkpoints"
        checkpoints.append((prefix.step, folder.is_dir()))
        folder.mkdir(parents=True, exist_ok=True)
        return _result(config, prefix)

    work_on_search(storage, design, execute)
    assert all(resumes == (step > 3) for step, resumes in checkpoints)
    progress = find_progress(storage.trials(), design)
    assert progress.winner is not None
    best, certainty, *_ = build_result(design, progress, progress.winner).sentences
    assert re.search(r"on (query|all linear layers) with rank [12], validation", best)
    assert "with rank" in certainty


def test_the_order_in_which_trials_end_does_not_matter(search: Search) -> None:
    """As with many workers: a rung begins after the last trial of the one before."""
    storage, design = search()
    chance = random.Random(3)
    while enqueue_next(storage, design):
        running = []
        while (trial := storage.claim_next()) is not None:
            running.append(trial)
        chance.shuffle(running)
        for number, trial in enumerate(running):
            assert enqueue_next(storage, design) == 0, number
            with trial:
                result = _result(design.run_config(trial.spec), design.prefix(trial.spec))
                trial.complete(result, design.score(result, trial.spec.until_step or 0))
    best = min(design.candidates, key=lambda c: abs(math.log10(c.learning_rate / 2e-3)))
    assert find_progress(storage.trials(), design).winner == best


@pytest.mark.parametrize("fails", [lambda step: step == 3, lambda step: step > 3], ids=["first", "later"])
def test_a_failed_candidate_is_dropped(search: Search, fails: Callable[[int], bool]) -> None:
    storage, design = search()
    best = min(design.candidates, key=lambda c: abs(math.log10(c.learning_rate / 2e-3)))

    def execute(config: RunConfig, prefix: RunPrefix) -> TrialResult:
        if config.training["learning_rate"] == best.learning_rate and fails(prefix.step):
            raise TrialError("diverged")
        return _result(config, prefix)

    work_on_search(storage, design, execute)
    progress = find_progress(storage.trials(), design)
    assert progress.winner not in (None, best)
    assert [t.error for t in storage.trials() if t.status is Status.FAIL] == ["diverged"]


def test_if_all_fail_nothing_wins(search: Search) -> None:
    storage, design = search()

    def execute(config: RunConfig, prefix: RunPrefix) -> TrialResult:
        raise TrialError("no memory")

    assert work_on_search(storage, design, execute) == design.rungs[0][1]
    progress = find_progress(storage.trials(), design)
    assert progress.ended
    assert progress.winner is None


def test_all_choices_train_as_many_parameters(search: Search) -> None:
    """Ranks are whole numbers, so that numbers agree within half a rank."""
    _, design = search(rank=[8])
    by_roles = {str(c.values["adapter.roles"]): n for c, n in design.space.trainable.items()}
    ranks = {str(c.values["adapter.roles"]): config.adapter.rank for c, config in design.space.configs.items()}
    first, everything = by_roles["['query', 'value']"], by_roles["all"]
    rank = ranks["all"]
    assert isinstance(rank, int)
    assert abs(everything - first) <= everything / rank / 2
