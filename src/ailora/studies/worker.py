"""A worker: takes the next trial, runs it, says what came of it, until nothing is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ailora.recipes.schema import RunConfig
from ailora.studies.grid import Cell, Grid
from ailora.studies.store import Running, Status, Store, Trial
from ailora.studies.trial import TrialError, isolated

#: (configuration of a run, what to keep) -> outcome
Execute = Callable[[RunConfig, str], dict[str, Any]]
#: Seconds between looks at a storage in which other workers still run something.
_PAUSE = 1.0


def work(store: Store, grid: Grid, execute: Execute = isolated) -> int:
    """Run trials until none is left to run, here or at another worker.

    Args:
        store: the study's trials.
        grid: what the study compares.
        execute: runs a configuration.

    Returns:
        How many trials this worker ended.

    Raises:
        KeyboardInterrupt: the worker was asked to stop; its trial waits again.
    """
    count = 0
    while True:
        trial = store.take()
        if trial is not None:
            _run(trial, grid, execute)
            count += 1
        elif extend(store, grid):
            continue
        elif any(not known.ended for known in store.trials()):
            # Others run what is left: they may die, and what they find may bring more.
            time.sleep(_PAUSE)
        else:
            return count


def extend(store: Store, grid: Grid) -> int:
    """Queue the cells that the results so far ask for; how many these were."""
    return store.add({grid.key_of(cell): cell.described() for cell in grid.wanted(scores(store.trials(), grid))})


def scores(trials: list[Trial], grid: Grid) -> dict[Cell, float]:
    """The score of every cell that has ended, larger is better; NaN where there is none."""
    found = {}
    for trial in trials:
        cell = Cell.of(trial.cell)
        if trial.ended and grid.holds(cell, trial.key):
            found[cell] = score_of(trial.outcome, grid, cell) if trial.status is Status.DONE else math.nan
    return found


def score_of(outcome: dict[str, Any] | None, grid: Grid, cell: Cell) -> float:
    """What decides, from the validation split, larger is better."""
    assert outcome is not None
    value = outcome["metrics"]["validation"][grid.metric_of(cell.group)]
    return value if grid.larger_is_better(cell.group) else -value


def _run(trial: Running, grid: Grid, execute: Execute) -> None:
    cell = Cell.of(trial.cell)
    with trial:
        try:
            outcome = execute(grid.run_config(cell), grid.config.keep)
            score = score_of(outcome, grid, cell)
            if math.isnan(score):
                raise TrialError(f"{grid.metric_of(cell.group)} on the validation split is not a number")
        except KeyboardInterrupt:
            trial.interrupted()
            raise
        except TrialError as error:
            trial.failed(str(error))
        else:
            trial.done(outcome, score)
