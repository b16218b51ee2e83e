"""A worker: takes the next trial, runs it, says what came of it, until nothing is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ailora.recipes.config.schema import RunConfig
from ailora.studies.conditions import Cell, Grid
from ailora.studies.time_to_loss_trials import confirmations
from ailora.studies.trial_runner import Judge, TrialError, TrialPruned, isolated
from ailora.studies.trial_storage import Running, Store
from ailora.studies.trial_table import current, score_of, scores

#: (configuration of a run, what to keep, judge) -> outcome; as `isolated`
Execute = Callable[[RunConfig, str, Judge | None], dict[str, Any]]
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
            _run(trial, store, grid, execute)
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
    trials = current(store, grid)
    wanted = grid.wanted(scores(trials, grid))
    if grid.config.confirm_speed and all(trial.ended for trial in trials) and len(trials) >= len(wanted):
        wanted += confirmations(trials, grid)
    return store.add({grid.key_of(cell): cell.described() for cell in wanted})


def _run(trial: Running, store: Store, grid: Grid, execute: Execute) -> None:
    cell = Cell.of(trial.cell)
    with trial:
        try:
            outcome = execute(grid.run_config(cell), grid.config.keep, _judge(trial, store, grid, cell))
            score = score_of(outcome, grid, cell)
            if not math.isfinite(score):
                raise TrialError(f"{grid.metric_of(cell.group)} on the validation split is {score}")
        except KeyboardInterrupt:
            trial.interrupted()
            raise
        except TrialPruned as pruned:
            trial.pruned(str(pruned))
        except TrialError as error:
            trial.failed(str(error))
        else:
            trial.done(outcome, score)


def _judge(trial: Running, store: Store, grid: Grid, cell: Cell) -> Judge | None:
    """Compares a run with those of the same task and point; only while the best rate is sought, with the first seed."""
    if not grid.config.pruning or cell.seed != grid.config.seeds[0] or cell.max_steps is not None:
        return None
    place = (cell.group.task, cell.group.point)
    others = {one.key: Cell.of(one.cell) for one in current(store, grid)}
    peers = {key for key, one in others.items() if (one.group.task, one.group.point) == place and one.seed == cell.seed}

    def judge(step: int, loss: float) -> bool:
        trial.evaluated(step, -loss)
        return not trial.falls_behind(peers)

    return judge
