"""How far a study is, as a table that lives."""

from __future__ import annotations

import os
import signal
import threading
import time

from rich.live import Live
from rich.table import Table

from ailora.cli.tables import console
from ailora.studies.conditions import Cell, Grid
from ailora.studies.trial_storage import Status, Store, Trial
from ailora.studies.trial_table import current

#: Seconds between looks at the storage.
_EVERY = 2.0


class Progress:
    """Shows `progress_table` while workers run; where the output is no terminal, a line for every trial that ended."""

    def __init__(self, store: Store, grid: Grid) -> None:
        self._store, self._grid = store, grid
        self._live = Live(progress_table(store, grid), console=console, auto_refresh=False)
        self._looked = 0.0
        self._told: set[str] = {trial.key for trial in current(store, grid) if trial.ended}

    def __enter__(self) -> Progress:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._looked = 0.0
        self.update()
        if console.is_terminal:
            self._live.stop()
        else:
            console.print(progress_table(self._store, self._grid))

    def update(self) -> None:
        """Look, unless that was a moment ago."""
        if time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        if console.is_terminal:
            self._live.update(progress_table(self._store, self._grid), refresh=True)
            return
        for trial in current(self._store, self._grid):
            if trial.ended and trial.key not in self._told:
                self._told.add(trial.key)
                console.print(_line(trial))


def progress_table(store: Store, grid: Grid) -> Table:
    """Trials by task and method: done, running, waiting, failed, and the time until all that is known has ended."""
    trials = current(store, grid)
    table = Table("task", "method", "done", "running", "waiting", "failed", "left", title=store.name)
    seconds = [trial.outcome["seconds"] for trial in trials if trial.outcome]
    usual = sum(seconds) / len(seconds) if seconds else None
    running = sum(trial.status is Status.RUNNING for trial in trials)
    for task, method in dict.fromkeys((group.task, group.method) for group in grid.groups):
        own = [t for t in trials if (t.cell["group"]["task"], t.cell["group"]["method"]) == (task, method)]
        count = {status: sum(t.status is status for t in own) for status in Status}
        took = [t.outcome["seconds"] for t in own if t.outcome]
        each = sum(took) / len(took) if took else usual
        open_trials = count[Status.RUNNING] + count[Status.WAITING]
        left = "" if each is None or not open_trials else _time(open_trials * each / max(running, 1))
        failed = count[Status.FAILED] + count[Status.PRUNED]
        numbers = (count[Status.DONE], count[Status.RUNNING], count[Status.WAITING], failed)
        table.add_row(task, method, *map(str, numbers), left)
    return table


def _line(trial: Trial) -> str:
    cell = Cell.of(trial.cell)
    group = cell.group
    point = "".join(f" {key}={value}" for key, value in group.values.items())
    if trial.outcome is None:
        said = trial.error or ""
    else:
        shown = trial.outcome["metrics"].get("validation", {})
        said = " ".join(f"{name} {value:.4f}" for name, value in shown.items()) + f", {trial.outcome['seconds']:.0f} s"
    return f"{trial.status} {group.task} {group.method}{point} {cell.learning_rate:g} seed {cell.seed}: {said}"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def stop_with_input() -> None:
    """Ask this process to end, as a scheduler does, when its standard input ends.

    Not as Ctrl-C does: what a shell starts in the background ignores that.
    """

    def watch() -> None:
        # Unbuffered: a thread that waits in a buffered reader breaks the interpreter's end.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
