"""Training ends where its loss, its gradients or its parameters are not numbers, and says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import ailora
from ailora.errors import AnchorMismatchError, DivergenceError
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.divergence import DivergenceCheck
from ailora.recipes.training.results import _find_best
from ailora.report.run_reader import read_run

#: Twelve steps, a checkpoint after each.
SMALL = ("data.max_train_samples=48", "training.eval_steps=1", "training.logging_steps=1")


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_training_stops_at_the_first_step_that_is_not_finite(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"diverged at step 2: the loss .*learning_rate \(now 1e\+30\)") as error:
        registry.run(load_config(config, [*SMALL, "training.learning_rate=1e30"]))
    run = tmp_path / "run"
    assert str(run / "checkpoints" / "checkpoint-1") in str(error.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert not (run / "adapter").exists()
    assert not (run / "result.json").exists()


def test_who_wants_to_trains_on_and_reads_it_in_the_log(config: dict[str, Any], tmp_path: Path) -> None:
    overrides = [*SMALL, "training.learning_rate=1e30", "training.max_steps=3", "on_nonfinite=continue"]
    result = registry.run(load_config(config, overrides))
    assert math.isnan(result["metrics"]["validation"]["loss"])
    # NaN in all logits is no vote for the first class.
    assert math.isnan(result["metrics"]["validation"]["accuracy"])
    assert math.isnan(result["history"][-1]["accuracy"])
    run = tmp_path / "run"
    log = [strict_json(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in log][1:] == ["NaN", "NaN"]
    assert strict_json((run / "result.json").read_text())["metrics"]["validation"]["loss"] == "NaN"
    assert math.isnan(RunFolder(run).read_result()["metrics"]["validation"]["loss"])
    assert math.isnan(read_run(run, "run").log[1]["loss"])  # type: ignore[arg-type]
    with pytest.raises(ailora.InputError, match=r"run/adapter: .* holds NaN or infinite entries"):
        registry.load_run(run).evaluate()


class _NanLossThenInterrupt(TrainerCallback):
    """Logs losses that are not finite, and interrupts the run after its second checkpoint."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in state.log_history[-1]:
            state.log_history[-1]["loss"] = math.nan

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_run_resumes_from_a_checkpoint_whose_history_is_not_finite(config: dict[str, Any], tmp_path: Path) -> None:
    """The Trainer writes NaN into `trainer_state.json`, which is its file and no JSON then."""
    overrides = [*SMALL, "training.max_steps=3", "on_nonfinite=continue"]
    with pytest.raises(KeyboardInterrupt):
        registry.run(load_config(config, overrides), [_NanLossThenInterrupt()])
    state = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    with pytest.raises(AssertionError, match="NaN is not JSON"):
        strict_json(state.read_text())
    registry.run(load_config(config, overrides))
    log = [strict_json(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in log][:2] == ["NaN", "NaN"]
    assert len(log) == 3


def test_a_checkpoint_of_diverged_factors_is_not_said_to_have_another_anchor(config: dict[str, Any]) -> None:
    overrides = [*SMALL, "training.learning_rate=1e30", "training.max_steps=3", "on_nonfinite=continue"]
    with pytest.raises(KeyboardInterrupt):
        registry.run(load_config(config, overrides), [_NanLossThenInterrupt()])
    with pytest.raises(AnchorMismatchError, match="holds NaN or infinite entries"):
        registry.run(load_config(config, overrides))


@pytest.mark.parametrize("recipe", ["config", "language_config"])
def test_a_base_that_is_not_finite_from_the_start_is_named_as_the_cause(
    request: pytest.FixtureRequest, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = request.getfixturevalue(recipe)
    made = load_config(config, ["training.max_steps=2", "training.max_grad_norm=0"])
    monkeypatch.setattr(registry, "load_and_adapt", _with_nan_norm(registry.load_and_adapt))
    with pytest.raises(DivergenceError, match=r"diverged at step 1: the loss is not finite\. This is the first step"):
        registry.run(made)


def _with_nan_norm(load: Any) -> Any:
    def loaded(recipe: Any) -> Any:
        model, seconds = load(recipe)
        norm = next(p for name, p in model.named_parameters() if "norm" in name.lower())
        with torch.no_grad():
            norm.fill_(math.nan)
        return model, seconds

    return loaded


# --- the check alone -------------------------------------------------------------------------------------------------


class _Fake:
    """What the check asks a trainer for."""

    def __init__(self, *, scale: float | None = None) -> None:
        self.model = nn.Linear(2, 1)
        self.step_loss = torch.ones(())
        scaler = None if scale is None else SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: scale)
        device = torch.device("cpu")
        self.accelerator = SimpleNamespace(scaler=scaler, device=device, reduce=lambda tensor, _: tensor)
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)


def check(fake: Any, folder: Path, method: str = "on_pre_optimizer_step", **state: Any) -> None:
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    made = TrainerState(global_step=7, max_steps=100, **state)
    control = TrainerControl(should_save=True)
    getattr(DivergenceCheck(fake, RunFolder(folder)), method)(arguments, made, control)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_gradient_is_enough(tmp_path: Path, value: float) -> None:
    fake = _Fake()
    check(fake, tmp_path)
    fake.model.weight.grad[0, 1] = value  # type: ignore[index]
    with pytest.raises(DivergenceError, match="step 8: the gradient is not finite"):
        check(fake, tmp_path)


def test_loss_scaling_may_overflow_until_its_scale_is_one(tmp_path: Path) -> None:
    for scale in (65536.0, 1.0):
        fake = _Fake(scale=scale)
        fake.model.weight.grad[0, 0] = math.inf  # type: ignore[index]
        if scale > 1:
            check(fake, tmp_path)
        else:
            with pytest.raises(DivergenceError, match="gradient"):
                check(fake, tmp_path)


@pytest.mark.parametrize("method", ["on_step_end", "on_epoch_end"])
def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path, method: str) -> None:
    fake = _Fake()
    check(fake, tmp_path, method)
    with torch.no_grad():
        fake.model.bias.fill_(math.inf)
    with pytest.raises(DivergenceError, match="step 7: parameters are no longer finite"):
        check(fake, tmp_path, method)


def test_an_evaluation_that_is_not_a_number_is_not_the_best() -> None:
    history = [{"loss": value} for value in (math.nan, 2.0, 1.0, math.nan)]
    assert _find_best(history, "loss", larger_is_better=False) == {"loss": 1.0}
    assert _find_best(history, "loss", larger_is_better=True) == {"loss": 2.0}
