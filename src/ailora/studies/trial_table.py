"""The trials of a study: which count, what each scored, and all of them as one table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ailora.studies.conditions import Cell, Grid
from ailora.studies.trial_storage import Status, Store, Trial

_SECONDS = ("seconds", "init_seconds", "train_seconds")
_FACTS = (
    *_SECONDS,
    "steps",
    "trainable_parameters",
    "total_parameters",
    "adapter_bytes",
    "peak_memory_bytes",
)


def frame(store: Store, grid: Grid) -> pd.DataFrame:
    """One row per trial that belongs to the study as its file and the installed versions are now.

    Columns: `key`, `task`, `method`, one for each key of the grid, `learning_rate`, `seed`, `max_steps`, `status`,
    `attempts`, every metric as `split_metric`, seconds, sizes, `folder`, `error`.
    """
    return pd.DataFrame([row(trial, grid) for trial in current(store, grid)])


def current(store: Store, grid: Grid) -> list[Trial]:
    """The trials that the study would run now; those of other versions are left out."""
    return [trial for trial in store.trials() if grid.holds(Cell.of(trial.cell), trial.key)]


def scores(trials: Iterable[Trial], grid: Grid) -> dict[Cell, float]:
    """The score of every cell that has ended, larger is better; NaN where there is none.

    Args:
        trials: from `current`.
        grid: the study.
    """
    found = {}
    for trial in trials:
        cell = Cell.of(trial.cell)
        if trial.ended:
            found[cell] = score_of(trial.outcome, grid, cell) if trial.status is Status.DONE else math.nan
    return found


def score_of(outcome: dict[str, Any] | None, grid: Grid, cell: Cell) -> float:
    """What decides, from the validation split, larger is better."""
    assert outcome is not None
    value = outcome["metrics"]["validation"][grid.metric_of(cell.group)]
    return value if grid.larger_is_better(cell.group) else -value


def row(trial: Trial, grid: Grid) -> dict[str, Any]:
    """A trial's row."""
    cell = Cell.of(trial.cell)
    outcome = trial.outcome or {}
    metrics = {
        f"{split}_{name}": value for split, found in outcome.get("metrics", {}).items() for name, value in found.items()
    }
    forgetting = {"forgetting": outcome["forgetting"]["rise"]} if "forgetting" in outcome else {}
    return {
        "key": trial.key,
        "task": cell.group.task,
        "method": cell.group.method,
        **{key: cell.group.values.get(key) for key in grid.config.grid},
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "max_steps": cell.max_steps,
        "status": trial.status.value,
        "attempts": trial.attempts,
        **metrics,
        **forgetting,
        **{name: outcome.get(name) for name in _FACTS},
        "folder": outcome.get("folder"),
        "error": trial.error,
    }
