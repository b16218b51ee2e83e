"""The benchmark of `ailora tune` replays recorded runs as a real search would have seen them, bit for bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ailora.recipes.config.loader import load_config
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.trial import Condition, TrialResult
from ailora.studies.trial_runner import TrialError
from ailora.tune.halving import find_progress
from ailora.tune.tune_run import open_search, run_search

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("tune_regret")


@pytest.mark.ci
@pytest.mark.parametrize("goal", ["loss", "accuracy"])
def test_a_replay_is_the_real_search(
    tuned: dict[str, Any], in_process: list[str], bench: ModuleType, tmp_path: Path, goal: str
) -> None:
    rates = [1e-3, 5e-3, 2e-2]
    tuned["tune"] |= {"learning_rate": {"values": rates}, "roles": [["query", "value"]], "budget": "2x", "goal": goal}
    config = load_config(tuned)
    table = bench.record(config, tmp_path / "table", rates=rates, seeds=[0])
    assert bench.Table.from_dict(table.to_dict()) == table
    storage, design = open_search(config)
    result = run_search(storage, design, workers=1, on_poll=lambda _: None)
    progress = find_progress(storage.trials(), design)
    for rung in progress.rungs:
        for candidate, trial in rung.trials.items():
            assert trial is not None
            assert trial.result is not None
            recorded = table.values[candidate.condition, candidate.learning_rate, 0][rung.step]
            assert dict(trial.result.metrics["validation"]) == recorded
    assert bench.replay(table, 2, seed=0, goal=goal, order=list(table.rates)) == progress.winner
    assert result.winner.learning_rate == progress.winner.learning_rate if progress.winner else False


def _table(bench: ModuleType, score: Callable[[str, float, int], float]) -> Any:
    """A table of two methods at three rates with three seeds."""
    values = {
        (Condition.from_values("base", method, {"adapter.roles": ["query", "value"], "adapter.rank": 8}), rate, seed): {
            step: {"accuracy": score(method, rate, seed), "loss": 1.0} for step in (10, 30, 100)
        }
        for seed in (0, 1, 2)
        for method in ("lora", "ailora")
        for rate in (1e-3, 1e-2, 1e-1)
    }
    return bench.Table([10, 30, 100], {"accuracy": True, "loss": False}, values)


def test_regret_is_zero_for_the_best_and_the_difference_for_others(bench: ModuleType) -> None:
    table = _table(bench, lambda method, rate, seed: 0.8 + 0.1 * (rate == 1e-2) + 0.01 * (method == "ailora"))
    lora, ailora = table.rates
    assert bench.regret(table, (ailora, 1e-2), seed=0, name="accuracy") == 0
    assert bench.regret(table, (lora, 1e-2), seed=0, name="accuracy") == pytest.approx(0.01)
    assert bench.regret(table, (lora, 1e-1), seed=0, name="accuracy") == pytest.approx(0.11)
    assert bench.replay(table, 5, seed=0, goal="accuracy", order=[lora, ailora]).learning_rate == 1e-2


def test_the_seed_that_chose_is_left_out(bench: ModuleType) -> None:
    """A lucky run of one seed is chosen by it, and costs by the others."""
    table = _table(bench, lambda method, rate, seed: 0.9 if seed or rate == 1e-1 else 0.5)
    lucky = _table(bench, lambda method, rate, seed: {0: 0.99, 1: 0.5, 2: 0.5}[seed] if rate == 1e-1 else 0.8)
    condition = next(iter(table.rates))
    assert bench.regret(table, (condition, 1e-1), seed=0, name="accuracy") == 0
    assert bench.regret(lucky, (condition, 1e-1), seed=0, name="accuracy") == pytest.approx(0.3)


def test_searches_beat_a_random_one_where_the_rate_decides(bench: ModuleType) -> None:
    table = _table(bench, lambda method, rate, seed: 0.9 - abs(rate - 1e-2) + 0.001 * seed)
    regrets = bench.compare(table, goal="accuracy", name="accuracy", repetitions=50)
    assert regrets["tune 5x"]["mean"] <= regrets["random search 2x"]["mean"]
    assert regrets["all 6 settings"]["mean"] == pytest.approx(0)


def test_a_run_that_diverges_keeps_the_rungs_before(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real search would have compared it there."""
    tried: list[int] = []

    def run_trial(config: object, keep: str, *, prefix: RunPrefix) -> TrialResult:
        tried.append(prefix.step)
        assert (keep, prefix.total_steps) == ("all", 100)
        if prefix.step > diverges_after:
            raise TrialError("diverged")
        return TrialResult({"validation": {"loss": 1.0}})

    monkeypatch.setattr(bench, "run_trial", run_trial)
    diverges_after = 50
    assert bench.train(None, range(10, 101, 10)).metrics == {"validation": {"loss": 1.0}}
    assert tried == [100, 50]
    diverges_after = 0
    with pytest.raises(TrialError, match="diverged"):
        bench.train(None, range(10, 101, 10))


def test_regrets_are_a_table_in_markdown(bench: ModuleType) -> None:
    regret = {"tune 5x": {"mean": 0.5, "quantile_90": 1.25}, "random search 5x": {"mean": 2.0, "quantile_90": 4.0}}
    assert bench.format_table({"loss: 0.01 nats": regret, "accuracy: points of accuracy": regret}).splitlines() == [
        "| choice by | loss: 0.01 nats | accuracy: points of accuracy |",
        "| --- | --- | --- |",
        "| tune 5x | 0.50 (1.25) | 0.50 (1.25) |",
        "| random search 5x | 2.00 (4.00) | 2.00 (4.00) |",
    ]
