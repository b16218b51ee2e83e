"""Steps and evaluations are counted as the Trainer makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.training.step_counts import count_steps, evaluation_steps


@pytest.mark.parametrize(
    "training",
    [
        {"eval_steps": 5},
        pytest.param({"max_steps": 7, "eval_steps": 0.3, "eval_delay": 4}, marks=pytest.mark.ci),
        pytest.param({"num_train_epochs": 1.4, "gradient_accumulation_steps": 5}, marks=pytest.mark.ci),
        pytest.param({"eval_strategy": "epoch", "per_device_train_batch_size": 40}, marks=pytest.mark.ci),
        pytest.param({"eval_strategy": "epoch", "num_train_epochs": 3, "eval_delay": 2}, marks=pytest.mark.ci),
        pytest.param({"eval_strategy": "epoch", "num_train_epochs": 1.5, "eval_delay": 5}, marks=pytest.mark.ci),
    ],
)
def test_counts_are_those_of_a_real_run(config: dict[str, Any], training: dict[str, Any]) -> None:
    del config["training"]["eval_steps"]
    config["training"] |= training
    run = load_config(config)
    recipe = registry.make_recipe(run)
    rows = len(recipe.datasets["train"])
    registry.run(run)
    result = json.loads(Path(run.output, "result.json").read_text())
    assert count_steps(recipe.arguments, rows) == result["steps"]
    assert evaluation_steps(recipe.arguments, rows) == [record["step"] for record in result["history"]]


def test_a_run_without_evaluations_has_none(config: dict[str, Any]) -> None:
    del config["training"]["eval_steps"]
    config["training"]["eval_strategy"] = "no"
    assert evaluation_steps(registry.make_recipe(load_config(config)).arguments, 96) == []
