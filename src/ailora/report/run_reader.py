"""Read the folder of a run, finished or not: half-written and damaged files become notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pandas as pd

from ailora.atomic_io import restore_non_finite
from ailora.errors import InputError
from ailora.formatting import pluralize, quote_argument
from ailora.plain_data import parse_json, read_json_object, split_json_lines
from ailora.recipes.config.yaml_file import read_yaml
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.trainer_checkpoints import list_complete_checkpoints
from ailora.redaction import without_secrets
from ailora.report.versions import version_notes

T = TypeVar("T")
#: An object of a JSON or YAML file.
Record = dict[str, object]


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        name: Name of the run on the page.
        folder: Folder of the run.
        config: Content of `config.yaml`; empty if unreadable.
        result: Content of `result.json`; empty if unreadable or not written yet.
        history: Evaluations so far.
        log: Logged steps so far.
        samples: Generated texts.
        search: Content of `tune.json`; empty for a run without a search.
        notes: Sentences on missing and damaged parts.
    """

    name: str
    folder: Path
    config: Record = field(default_factory=dict)
    result: Record = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    search: Record = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, Record]:
        """Metrics of the result: split -> metric -> value."""
        # `RunFolder.read_result` validates the keys of the result, but not the types of the values.
        metrics = self.result.get("metrics")
        splits = metrics.items() if isinstance(metrics, dict) else ()
        return {split: values for split, values in splits if isinstance(values, dict)}


def read_run(folder: Path, name: str) -> Run:
    """Read the readable parts of a run's folder.

    Args:
        folder: Folder with a `config.yaml`.
        name: Name of the run on the page.

    Returns:
        The run, with a note for each missing or damaged part.
    """
    files = RunFolder(folder)
    notes: list[str] = []
    config = _read_or_note(lambda: read_yaml(files.config), notes)
    result = _read_or_note(files.read_result, notes) if files.result.is_file() else None
    if not files.result.is_file():
        notes.append(_describe_unfinished(files))
    history = (result or {}).get("history")
    if not isinstance(history, list):
        history = _read_checkpoint_history(files, notes)
    search = _read_or_note(lambda: read_json_object(files.search), notes) if files.search.is_file() else None
    run = Run(
        name=name,
        folder=folder,
        # Configurations written by earlier versions may contain secrets.
        config=without_secrets(config) if isinstance(config, dict) else {},
        result=without_secrets(result or {}),
        history=[record for record in history if isinstance(record, dict)],
        # `read_result` has already restored the numbers of the result; samples are texts.
        log=restore_non_finite(_read_json_lines(files.log, notes)),
        samples=_read_json_lines(files.samples, notes),
        search=search or {},
        notes=notes,
    )
    run.notes.extend(version_notes("run", run.result.get("versions")))
    return run


def count_predictions(run: Run) -> tuple[list[str], list[list[int]], str] | None:
    """Count the pairs of true and predicted class on the test split if there is one, else on the validation split.

    Args:
        run: The run. If its predictions cannot be read, a note is added to it.

    Returns:
        The names of the classes, counts[true][predicted], and the split; None if the run predicts no classes, or if
        its predictions are missing or cannot be read. Rows without a prediction, whose logits were not finite, are not
        counted.
    """
    labels = run.result.get("labels")
    if not isinstance(labels, list):
        return None
    files = RunFolder(run.folder)
    predictions = _read_or_note(lambda: files.read_predictions(["label", "prediction", "split"]), run.notes)
    if predictions is None:
        return None
    split = "test" if "test" in set(predictions["split"]) else "validation"
    # Converted to text, missing predictions would count for a class named "None".
    reported = predictions.loc[predictions["split"] == split].dropna(subset=["prediction"])
    names = [str(label) for label in labels]
    table = pd.crosstab(reported["label"].astype(str), reported["prediction"].astype(str))
    # The crosstab lacks classes that no row has or that are never predicted.
    table = table.reindex(index=names, columns=names, fill_value=0)
    return names, table.to_numpy().astype(int).tolist(), split


def _read_or_note(read: Callable[[], T], notes: list[str]) -> T | None:
    try:
        return read()
    except InputError as error:
        notes.append(str(error))
        return None


def _describe_unfinished(files: RunFolder) -> str:
    if files.failed.is_file():
        return f"This run failed: {files.failed.read_text(encoding='utf-8', errors='replace').strip()}"
    return (
        f"This run has not finished: {files.path} has no result.json. The page shows the files written so far. "
        f"`ailora train {quote_argument(files.config)}` resumes the run."
    )


def _read_checkpoint_history(files: RunFolder, notes: list[str]) -> list[Record]:
    """Return the evaluations stored in the newest readable complete checkpoint."""
    for checkpoint in list_complete_checkpoints(files.checkpoints):
        file = checkpoint / "trainer_state.json"
        try:
            records = read_json_object(file, allow_nan=True)["log_history"]
            return [_without_prefix(record) for record in records if "eval_loss" in record]
        except (InputError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{file} cannot be read ({type(error).__name__}: {error}).")
    return []


def _without_prefix(record: Mapping[str, object]) -> Record:
    return {key.removeprefix("eval_"): value for key, value in record.items()}


def _read_json_lines(file: Path, notes: list[str]) -> list[Record]:
    """Return the objects of a JSON Lines file, without damaged lines."""
    # If the run was killed, the last line may be cut, even within a character.
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    values = [_parse_or_none(line, where) for where, line in split_json_lines(text, file)]
    records = [value for value in values if isinstance(value, dict)]
    if damaged := len(values) - len(records):
        notes.append(f"{file.name}: {pluralize(damaged, 'line is', 'lines are')} damaged and left out.")
    return records


def _parse_or_none(line: str, where: str) -> object:
    try:
        return parse_json(line, where, allow_nan=True)
    except InputError:
        return None
