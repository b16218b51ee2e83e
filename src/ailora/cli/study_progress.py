"""Show the progress of a study as a live table, and connect its workers to their parent process."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.live import Live
from rich.table import Table

from ailora.cli.tables import console, make_table
from ailora.formatting import pluralize
from ailora.studies.trial import Status, Trial
from ailora.studies.trial_keys import TrialKeys
from ailora.studies.trial_storage import TrialStorage

#: Seconds between reads of the storage.
_POLL_INTERVAL_S = 2.0


class Progress:
    """Live display of `progress_table` while workers run. Without a terminal, print a line for every ended trial."""

    def __init__(self, storage: TrialStorage, keys: TrialKeys) -> None:
        self._storage, self._keys = storage, keys
        # No automatic refresh, because the content changes only in `update`.
        self._live = Live(progress_table(storage, keys), console=console, auto_refresh=False)
        self._last_poll = -math.inf
        self._printed_keys = {trial.key for trial in keys.matching_trials(storage.trials()) if trial.ended}

    def __enter__(self) -> Progress:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Show the final state even within the poll interval.
        self._last_poll = -math.inf
        try:
            self.update()
        finally:
            # The live display hides the cursor, so it must stop even if the storage cannot be read.
            if console.is_terminal:
                self._live.stop()
        if not console.is_terminal:
            console.print(progress_table(self._storage, self._keys))

    def update(self) -> None:
        """Show the state of the storage, at most once per poll interval."""
        if time.monotonic() - self._last_poll < _POLL_INTERVAL_S:
            return
        self._last_poll = time.monotonic()
        if console.is_terminal:
            self._live.update(progress_table(self._storage, self._keys), refresh=True)
            return
        for trial in self._keys.matching_trials(self._storage.trials()):
            if trial.ended and trial.key not in self._printed_keys:
                self._printed_keys.add(trial.key)
                console.print(_format_trial(trial))


def progress_table(storage: TrialStorage, keys: TrialKeys) -> Table:
    """Build a table with counts of trials by task and method, and estimates of the remaining time.

    Args:
        storage: Storage of the study.
        keys: Keys of the study's trials.

    Returns:
        The table. An estimate is the number of waiting and running trials of the row, times the mean duration of
        complete trials, divided by the number of running trials of the whole study.
    """
    trials = keys.matching_trials(storage.trials())
    columns = ("task", "method", "done", "running", "waiting", "failed", "left")
    rows: list[tuple[str, ...]] = []
    overall_mean_seconds = _compute_mean_seconds(trials)
    n_running = sum(trial.status is Status.RUNNING for trial in trials)
    for task, method in dict.fromkeys((condition.task, condition.method) for condition in keys.conditions):
        matching = [t for t in trials if (t.spec.condition.task, t.spec.condition.method) == (task, method)]
        counts = Counter(trial.status for trial in matching)
        # Before the first trial of a method is complete, the trials of all methods are the best estimate.
        mean_seconds = _compute_mean_seconds(matching) or overall_mean_seconds
        n_open = counts[Status.RUNNING] + counts[Status.WAITING]
        left = ""
        if mean_seconds is not None and n_open:
            left = _format_remaining_time(n_open * mean_seconds / max(n_running, 1))
        n_failed = counts[Status.FAIL] + counts[Status.PRUNED]
        numbers = (counts[Status.COMPLETE], counts[Status.RUNNING], counts[Status.WAITING], n_failed)
        rows.append((task, method, *map(str, numbers), left))
    return make_table(storage.name, columns, rows)


def describe_refusals(storage: TrialStorage, keys: TrialKeys) -> list[str]:
    """List the reasons for which trials were refused, each with the number of its trials, and how to run them again.

    Args:
        storage: Storage of the study.
        keys: Keys of the study's trials.

    Returns:
        Lines; empty without refused trials.
    """
    # Keys make a trial count once, although `matching_trials` repeats it for each condition to which it belongs.
    errors = {trial.key: trial.error or "" for trial in keys.matching_trials(storage.trials()) if trial.refused}
    lines = [f"{pluralize(count, 'trial')} refused: {error}" for error, count in Counter(errors.values()).items()]
    return lines and [*lines, "`ailora study run --retry-refused` runs them again, once their input is corrected."]


def _compute_mean_seconds(trials: Sequence[Trial]) -> float | None:
    """Return the mean duration of complete trials in seconds, or None without complete trials."""
    seconds = [trial.result.seconds for trial in trials if trial.result and trial.result.seconds is not None]
    return sum(seconds) / len(seconds) if seconds else None


def _format_trial(trial: Trial) -> str:
    spec, result, condition = trial.spec, trial.result, trial.spec.condition
    setting = "".join(f" {key}={value}" for key, value in condition.values.items())
    if result is None:
        text = trial.error or ""
    else:
        metrics = " ".join(f"{name} {value:.4f}" for name, value in result.metrics.get("validation", {}).items())
        text = f"{metrics}, {result.seconds or 0:.0f} s"
    return (
        f"{trial.status} {condition.task} {condition.method}{setting} {spec.learning_rate:g} seed {spec.seed}: {text}"
    )


def _format_remaining_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def read_handover() -> tuple[str, dict[str, Any]]:
    """Read the line that `ailora study run` or `ailora tune` writes to the standard input of a worker.

    The line contains secrets. They must not be process arguments, because other users can read process arguments.

    Returns:
        The URL of the storage, and the study file or the request of `ailora tune`, both with their secrets.
    """
    line = b""
    # Read without a buffer, because `stop_with_input` reads the rest of the input from the file descriptor.
    while not line.endswith(b"\n"):
        if not (part := os.read(0, 2**16)):
            # The parent process has ended: end as after Ctrl-C.
            raise KeyboardInterrupt
        line += part
    handover = json.loads(line)
    return handover["storage"], handover["study"]


def stop_with_input() -> None:
    """Send SIGTERM to this process when its standard input ends, because the parent process has then ended."""
    # SIGTERM instead of SIGINT, because processes that a shell starts in the background ignore SIGINT.

    def watch() -> None:
        # Read without a buffer, because the interpreter crashes at exit if a thread waits in a buffered reader.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
