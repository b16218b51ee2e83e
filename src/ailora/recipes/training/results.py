"""Results of training, and their summary in `result.json`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState

from ailora.atomic_io import write_json
from ailora.library_versions import library_versions
from ailora.recipes.baselines.adapter_origin import get_adapter_origin
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.run_folder import RunFolder


@dataclass(frozen=True)
class TrainResult:
    """Trained model and durations of a run.

    Attributes:
        trainer: Trainer with the trained model and the log history.
        init_seconds: Duration of loading and adapting the model, in seconds.
        train_seconds: Duration of training in seconds, including earlier processes of a resumed run.
    """

    trainer: Trainer
    init_seconds: float
    train_seconds: float


def summarize_run(config: RunConfig, trained: TrainResult) -> dict[str, Any]:
    """Summarize a run for `result.json`: evaluations, sizes, durations, configuration and library versions.

    Args:
        config: Configuration of the run.
        trained: Result of the training.

    Returns:
        Entries of `result.json`; sizes in bytes, durations in seconds.
    """
    trainer = trained.trainer
    history = list_evaluations(trainer.state, config.metrics)
    best = {"loss": _find_best(history, "loss", larger_is_better=False)}
    # The first metric is the main metric. Language models have no metrics during training.
    for main_metric in config.metrics[:1]:
        best[main_metric] = _find_best(history, main_metric, larger_is_better=True)
    parameters = list(trainer.model.parameters()) if trainer.model else []
    plan = get_adapter_origin(trainer.model).plan if trainer.model else None
    return {
        "best": best,
        "history": history,
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "adapted": dict(plan.counts) if plan else {},
        "seed": config.training["seed"],
        "config": config.model_dump(),
        "versions": library_versions(),
        "init_seconds": trained.init_seconds,
        "train_seconds": trained.train_seconds,
        "peak_memory_bytes": _read_peak_memory(),
    }


def list_evaluations(state: TrainerState, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """List the evaluations during training.

    Args:
        state: State of the Trainer.
        metrics: Names of the run's metrics.

    Returns:
        `step`, `epoch`, `loss` and metrics of each evaluation, by step.
    """
    keys = ("step", "epoch", "eval_loss", *(f"eval_{metric}" for metric in metrics))
    return [
        {key.removeprefix("eval_"): record[key] for key in keys}
        for record in state.log_history
        if "eval_loss" in record
    ]


def _find_best(history: Sequence[dict[str, Any]], name: str, *, larger_is_better: bool) -> dict[str, Any] | None:
    """Return the evaluation with the best value; NaN is worse than all numbers. None without evaluations."""
    sign = -1 if larger_is_better else 1
    return min(history, key=lambda record: (math.isnan(record[name]), sign * record[name]), default=None)


def write_result(folder: RunFolder, result: dict[str, Any]) -> None:
    """Write `result.json`, whose presence marks a run as finished."""
    write_json(folder.result, result)


def _read_peak_memory() -> int | None:
    """Return the peak memory of this process in bytes: on the GPU, else in RAM. None if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, `ru_maxrss` starts at the peak of the parent process. `VmHWM` (KiB) is the peak of this process.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    # `resource` exists only on Unix. Type checkers understand a comparison with `sys.platform`.
    if sys.platform == "win32":
        return None
    import resource

    # macOS reports bytes, not KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_resident_memory() -> int:
    """Return the resident memory of this process in bytes. Outside Linux, return the peak, or 0 if it is unknown."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return _read_peak_memory() or 0
    resident_pages = int(statm.read_text(encoding="ascii").split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
