"""A run that stops at an evaluation and resumes later is the run that never stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ailora import InputError
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.run_prefix import RunPrefix

#: 96 rows in batches of 8, twice.
TOTAL = 24
#: Entries of `result.json` that two runs of the same configuration do not share.
_OWN = ("init_seconds", "train_seconds", "peak_memory_bytes", "config")


def _result(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in _OWN}


def _weights(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({}, [5, 15, TOTAL]),
        # Nothing is saved by the run itself, and its last evaluation is not a multiple.
        pytest.param({"save_strategy": "no", "eval_steps": 0.3}, [8, 16], marks=pytest.mark.ci),
        pytest.param({"eval_strategy": "epoch"}, [12, TOTAL], marks=pytest.mark.ci),
        pytest.param({"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 4}, [12], marks=pytest.mark.ci),
    ],
    ids=["steps", "unsaved", "epochs", "saves-elsewhere"],
)
def test_prefixes_add_up_to_the_run(config: dict[str, Any], training: dict[str, Any], steps: list[int]) -> None:
    del config["training"]["eval_steps"]
    config["training"] |= training or {"eval_steps": 5}
    whole = load_config(config | {"output": config["output"] + "-whole"})
    registry.run(whole)
    run = load_config(config)
    evaluations = json.loads(Path(whole.output, "result.json").read_text())["history"]
    for step in steps:
        history = registry.run_prefix(run, RunPrefix(step, TOTAL))
        assert history == [record for record in evaluations if record["step"] <= step]
        assert not RunFolder(run.output).result.exists()
    registry.run(run)
    assert _result(Path(run.output)) == _result(Path(whole.output))
    assert _weights(Path(run.output)) == _weights(Path(whole.output))


def test_a_prefix_that_is_there_is_read_and_not_trained_again(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_config(config)
    history = registry.run_prefix(run, RunPrefix(10, TOTAL))
    monkeypatch.setattr(registry, "run", lambda *_: pytest.fail("trained again"))
    assert registry.run_prefix(run, RunPrefix(10, TOTAL)) == history
    assert registry.run_prefix(run, RunPrefix(5, TOTAL)) == history[:1]


def test_another_schedule_is_refused_at_its_first_step(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a schedule of 30 steps, got 24"):
        registry.run_prefix(load_config(config), RunPrefix(5, 30))


def test_a_step_without_an_evaluation_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="does not evaluate at step 7"):
        registry.run_prefix(load_config(config), RunPrefix(7, TOTAL))
