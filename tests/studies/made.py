"""Studies that nobody ran: a grid, and trials with the outcomes that a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ailora.studies.conditions import Cell, Grid
from ailora.studies.study_config import load_study_config
from ailora.studies.trial_storage import Status, Trial
from ailora.studies.trial_table import scores

#: An outcome, the error of a trial that failed, or what else became of it.
Result = dict[str, Any] | str | Status
#: Steps between evaluations.
EVERY = 10


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage whenever p-values are adjusted, which takes a second beside torch."""
    monkeypatch.setattr("gc.collect", lambda *generation: 0)
    monkeypatch.setattr("ailora.studies.bootstrap._RESAMPLES", 50)


def grid_of(**changes: Any) -> Grid:
    """Two methods at one learning rate with five seeds; no file needs to exist."""
    base = {
        "recipe": "classification",
        "model": "builtin:minilm",
        "adapter": {"rank": 4},
        "data": {"train": "a.tsv", "validation": "b.tsv", "test": "c.tsv", "text": ["sentence"]},
    }
    study = {
        "base": base,
        "methods": ["lora", "ailora"],
        "learning_rate": {"values": [1e-3]},
        "seeds": [0, 1, 2, 3, 4],
        "output": "out",
    }
    return Grid(load_study_config(study | changes))


def outcome(value: float, *, test: float | None = None, losses: Sequence[float] = (0.5,), **facts: Any) -> Result:
    """Of a run with one evaluation every ten steps.

    Args:
        value: the accuracy on the validation split.
        test: on the test split; None: the same.
        losses: of the evaluations on the validation split.
        **facts: other facts than usual.
    """
    history = [{"step": EVERY * (i + 1), "loss": loss, "accuracy": value} for i, loss in enumerate(losses)]
    last = losses[-1] if losses else 0.5
    return {
        "metrics": {
            "validation": {"accuracy": value, "loss": last},
            "test": {"accuracy": value if test is None else test, "loss": last},
        },
        "history": history,
        "steps": EVERY * len(losses),
        "trainable_parameters": 1234,
        "total_parameters": 56789,
        "adapter_bytes": 4096,
        "init_seconds": 0.25,
        "train_seconds": 8.0,
        "peak_memory_bytes": 2**28,
        "seconds": 9.0,
        "folder": "out/nowhere",
    } | facts


def trial(grid: Grid, cell: Cell, result: Result, number: int = 0) -> Trial:
    """What the storage would tell of a cell."""
    known = (number, grid.key_of(cell), json.loads(json.dumps(cell.described())))
    if isinstance(result, dict):
        return Trial(*known, Status.DONE, outcome=result)
    if isinstance(result, Status):
        return Trial(*known, result, error="pruned at step 10" if result is Status.PRUNED else None)
    return Trial(*known, Status.FAILED, error=result)


def ran(grid: Grid, result: Callable[[Cell], Result]) -> list[Trial]:
    """Everything that a study asks for, until it asks for nothing more."""
    trials: dict[Cell, Trial] = {}
    while new := [cell for cell in grid.wanted(scores(trials.values(), grid)) if cell not in trials]:
        trials |= {cell: trial(grid, cell, result(cell), len(trials) + i) for i, cell in enumerate(new)}
    return list(trials.values())


def predicted(folder: Path, split: str, labels: Sequence[str], predictions: Sequence[str], classes: int) -> None:
    """Add a split to the predictions of a run."""
    file = folder / "predictions.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    made = pd.DataFrame({"row": range(len(labels)), "label": labels, "prediction": predictions, "split": split})
    made["scores"] = [[1 / classes] * classes for _ in labels]
    before = [pd.read_parquet(file)] if file.exists() else []
    pd.concat([*before, made]).to_parquet(file, index=False)
