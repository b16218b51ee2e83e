"""A trial in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies import trial_runner
from ailora.studies.trial_runner import TrialError, TrialPruned, run_in_subprocess, run_trial


def poisoned(model: torch.nn.Module, context: Any) -> torch.nn.Module:
    """A method whose model knows only NaN."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


def killing(model: torch.nn.Module, context: Any) -> torch.nn.Module:
    """A method that dies as one does whose memory is taken away."""
    os.kill(os.getpid(), signal.SIGKILL)
    return model


def raising(model: torch.nn.Module, context: Any) -> torch.nn.Module:
    """A method that does not work."""
    raise RuntimeError("no such kernel")


def exhausting(model: torch.nn.Module, context: Any) -> torch.nn.Module:
    """A method that asks for more memory than any machine has."""
    torch.zeros(10**15)
    return model


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of trials finds this module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]), prepend=os.pathsep)


def method(config: dict[str, Any], name: str) -> dict[str, Any]:
    return config | {"adapter": {"policy": f"{__name__}:{name}"}}


def test_what_is_kept_of_a_run(config: dict[str, Any]) -> None:
    kept = run_in_subprocess(load_config(config), "adapter")
    folder = Path(config["output"])
    result = json.loads((folder / "result.json").read_text())
    assert kept.metrics == result["metrics"]
    assert kept.history == result["history"]
    assert (kept.adapter_bytes or 0) > 0
    assert (kept.seconds or 0) > 0
    assert (folder / "adapter").is_dir()
    assert (folder / "predictions.parquet").is_file()
    assert not (folder / "checkpoints").exists()
    assert "train_runtime" in folder.with_suffix(".log").read_text()


@pytest.mark.parametrize(("keep", "left"), [("nothing", set()), ("all", {"adapter", "checkpoints"})])
def test_what_is_kept_of_a_model(config: dict[str, Any], keep: str, left: set[str]) -> None:
    run_trial(load_config(config), keep)
    assert {name for name in ("adapter", "checkpoints") if (Path(config["output"]) / name).exists()} == left


def test_an_error_is_told(config: dict[str, Any]) -> None:
    with pytest.raises(TrialError, match="no such kernel"):
        run_in_subprocess(load_config(method(config, "raising")), "adapter")
    assert "no such kernel" in Path(config["output"]).with_suffix(".log").read_text()


def test_memory_that_does_not_suffice_is_told_with_the_way_out(config: dict[str, Any]) -> None:
    with pytest.raises(TrialError, match=r"^out of memory .*DefaultCPUAllocator.*: take a smaller batch or model$"):
        run_in_subprocess(load_config(method(config, "exhausting")), "adapter")


def test_a_process_that_is_killed_is_told(config: dict[str, Any]) -> None:
    with pytest.raises(TrialError, match=r"ended by signal SIGKILL \(out of memory\?\)"):
        run_in_subprocess(load_config(method(config, "killing")), "adapter")


def test_a_run_that_turns_nan_ends_at_once(config: dict[str, Any]) -> None:
    with pytest.raises(TrialError, match="training diverged at step 1"):
        run_in_subprocess(load_config(method(config, "poisoned")), "adapter")


def test_a_run_is_asked_whether_it_goes_on(config: dict[str, Any]) -> None:
    asked: list[int] = []

    def should_continue(step: int, loss: float) -> bool:
        asked.append(step)
        return step < 10

    with pytest.raises(TrialPruned, match="pruned at step 10"):
        run_in_subprocess(load_config(config), "adapter", should_continue)
    assert asked == [5, 10]


def test_a_run_that_is_killed_while_it_waits_for_an_answer_is_one_error(config: dict[str, Any]) -> None:
    def should_continue(step: int, loss: float) -> bool:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        return True

    with pytest.raises(TrialError, match="ended by signal SIGKILL"):
        run_in_subprocess(load_config(config), "adapter", should_continue)


_WORKER = """
import sys
from ailora.recipes.config.loader import load_config
from ailora.studies.trial_runner import run_in_subprocess
run_in_subprocess(load_config(sys.argv[1]), "adapter")
"""


@pytest.mark.ci
def test_a_trial_dies_with_its_worker(config: dict[str, Any], tmp_path: Path) -> None:

    file = tmp_path / "long.yaml"
    config["training"]["num_train_epochs"] = 10_000
    file.write_text(format_yaml(config))
    worker = subprocess.Popen([sys.executable, "-c", _WORKER, str(file)])
    log = Path(config["output"]) / "log.jsonl"
    _wait(lambda: log.is_file() and log.stat().st_size > 0)
    worker.kill()
    worker.wait()
    sizes: list[int] = []

    def stands_still() -> bool:
        sizes.append(log.stat().st_size)
        return len(sizes) > 20 and sizes[-1] == sizes[-20]

    _wait(stands_still)


def _wait(until: Any) -> None:
    for _ in range(1200):
        if until():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    ("gpus", "installed", "method"), [(0, True, "forkserver"), (1, False, "forkserver"), (1, True, "spawn")]
)
def test_trials_are_not_forked_from_a_process_that_asked_cuda(
    monkeypatch: pytest.MonkeyPatch, gpus: int, installed: bool, method: str
) -> None:
    """bitsandbytes and torchao ask while they are imported, and CUDA does not work in forks made afterwards."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(trial_runner, "find_spec", lambda name: installed or None)
    assert trial_runner._multiprocessing_context().get_start_method() == method
