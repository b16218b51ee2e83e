"""Which trials of a study a page is about, and what has to be said of the others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from ailora.formatting import pluralize
from ailora.plan.adapter_metadata import library_versions
from ailora.studies.conditions import Cell, Grid
from ailora.studies.method_results import report_split
from ailora.studies.trial_storage import Status, Trial


@dataclass(frozen=True)
class Counting:
    """The trials that count.

    Attributes:
        trials: one for each cell.
        notes: what was left out, and why.
    """

    trials: list[Trial]
    notes: list[str]


def counting(every: Iterable[Trial], grid: Grid) -> Counting:
    """The trials that the study would run now or, where none of them is done, the newest ones of other versions.

    Args:
        every: all trials of the storage.
        grid: the study.
    """
    cells = [(trial, Cell.of(trial.cell)) for trial in every]
    known = [(trial, cell) for trial, cell in cells if cell.group in grid.groups]
    ours = [trial for trial, cell in known if grid.holds(cell, trial.key)]
    others = {cell: trial for trial, cell in known if not grid.holds(cell, trial.key)}
    notes = []
    if gone := len(cells) - len(known):
        notes.append(f"{pluralize(gone, 'trial')} of the storage belong to no cell of the study as it is now.")
    done = [trial for trial in others.values() if trial.status is Status.DONE]
    if done and not any(trial.status is Status.DONE for trial in ours):
        notes.append(
            "No trial was run with what is installed now: what is shown was run with other versions, "
            f"or from another working folder. `ailora study run` would run it again. Installed: {_installed()}."
        )
        ours = list(others.values())
    elif others:
        notes.append(
            f"{pluralize(len(others), 'trial')} run with other versions, or from another working folder, "
            f"are left out. Installed: {_installed()}."
        )
    return _sound(ours, grid, notes)


def _sound(trials: list[Trial], grid: Grid, notes: list[str]) -> Counting:
    """Without trials whose outcome does not hold what they are compared by."""
    damaged = [trial for trial in trials if trial.status is Status.DONE and not _has_scores(trial, grid)]
    if damaged:
        keys = ", ".join(trial.key for trial in damaged[:5])
        notes.append(f"{pluralize(len(damaged), 'trial')} left out, as the score that decides is missing: {keys}.")
    return Counting([_read(trial) for trial in trials if trial not in damaged], notes)


def _read(trial: Trial) -> Trial:
    """With those evaluations only that say at which step which loss was."""
    if trial.outcome is None:
        return trial
    history = [one for one in trial.outcome.get("history") or [] if {"step", "loss"} <= one.keys()]
    return dataclasses.replace(trial, outcome=trial.outcome | {"history": history})


def _has_scores(trial: Trial, grid: Grid) -> bool:
    group = Cell.of(trial.cell).group
    metrics = (trial.outcome or {}).get("metrics", {})
    splits = {"validation", report_split(grid, group)}
    # What a file of another version holds is not known; text would break the arithmetic.
    return all(isinstance(metrics.get(split, {}).get(grid.metric_of(group)), int | float) for split in splits)


def _installed() -> str:
    return json.dumps(library_versions())[1:-1].replace('"', "").replace(": ", " ")
