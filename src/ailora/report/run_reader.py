"""What a run's folder holds, read as far as it can be read: a half-written or damaged one is told of, not refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ailora.errors import InputError
from ailora.formatting import pluralize
from ailora.recipes.config.yaml_file import read_yaml
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.trainer_checkpoints import complete_checkpoints
from ailora.report.versions import other_versions

Found = TypeVar("Found")


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        name: as the page calls it.
        folder: where it is.
        config: its configuration, plain data; empty where it cannot be read.
        result: what `result.json` holds; empty where the run has not finished.
        history: its evaluations so far.
        log: its logged steps so far.
        samples: the texts that it wrote.
        notes: what is missing or damaged.
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Split -> metric -> value."""
        found = self.result.get("metrics")
        splits = found.items() if isinstance(found, dict) else ()
        return {split: values for split, values in splits if isinstance(values, dict)}


def read_run(folder: Path, name: str) -> Run:
    """All of a run's folder that can be read.

    Args:
        folder: it holds at least a `config.yaml`.
        name: as the page calls it.
    """
    place, notes = RunFolder(folder), []
    config = _tried(lambda: read_yaml(place.config), notes)
    result = _tried(place.read_result, notes) if place.result.is_file() else None
    if not place.result.is_file():
        notes.append(_unfinished(place))
    history = (result or {}).get("history")
    if not isinstance(history, list):
        history = _history_so_far(place, notes)
    run = Run(
        name=name,
        folder=folder,
        config=config if isinstance(config, dict) else {},
        result=result or {},
        history=[one for one in history if isinstance(one, dict)],
        log=_lines(place.log, notes),
        samples=_lines(place.samples, notes),
        notes=notes,
    )
    notes += other_versions("run", run.result.get("versions"))
    return run


def confusion(run: Run) -> tuple[list[str], list[list[int]], str] | None:
    """How often each class was taken for which, on the split that is reported; None: the run decides on no classes.

    Returns:
        The classes, counts [true][predicted], and the split.
    """
    file = RunFolder(run.folder).predictions
    labels = run.result.get("labels")
    if not file.is_file() or not isinstance(labels, list):
        return None
    try:
        frame = pd.read_parquet(file, columns=["label", "prediction", "split"])
    except (OSError, ValueError, KeyError) as error:
        run.notes.append(f"{file} cannot be read: {' '.join(str(error).split())[:200]}")
        return None
    splits = set(frame["split"])
    split = "test" if "test" in splits else "validation"
    own = frame.loc[frame["split"] == split]
    names = [str(label) for label in labels]
    table = pd.crosstab(own["label"].astype(str), own["prediction"].astype(str))
    table = table.reindex(index=names, columns=names, fill_value=0)
    return names, table.to_numpy().astype(int).tolist(), split


def _tried(read: Callable[[], Found], notes: list[str]) -> Found | None:
    try:
        return read()
    except InputError as error:
        notes.append(str(error))
        return None


def _unfinished(place: RunFolder) -> str:
    if place.failed.is_file():
        return f"This run failed: {place.failed.read_text(encoding='utf-8', errors='replace').strip()}"
    return (
        f"This run has not finished: {place.path} has no result.json. What is shown is what it had written; "
        f"`ailora train {place.config}` goes on."
    )


def _history_so_far(place: RunFolder, notes: list[str]) -> list[dict[str, Any]]:
    """The evaluations that the newest whole checkpoint knows."""
    for checkpoint in complete_checkpoints(place.checkpoints):
        file = checkpoint / "trainer_state.json"
        try:
            logged = json.loads(file.read_text(encoding="utf-8"))["log_history"]
            return [
                {key.removeprefix("eval_"): value for key, value in one.items()} for one in logged if "eval_loss" in one
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{file} cannot be read ({type(error).__name__}: {error}).")
    return []


def _lines(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a line that a kill has cut is left out."""
    if not file.is_file():
        return []
    found, broken = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            one = None
        if isinstance(one, dict):
            found.append(one)
        elif line.strip():
            broken += 1
    if broken:
        notes.append(f"{file.name}: {pluralize(broken, 'line is', 'lines are')} damaged and left out.")
    return found
