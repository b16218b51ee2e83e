"""Checkpoints of a run: which one training goes on from, and whether it is as it was written."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ailora.atomic_io import write_json
from ailora.errors import InputError
from ailora.plain_data import read_json, read_json_object

_COMPLETE = "complete.json"
_NUMBERED = re.compile(r"checkpoint-(\d+)")
#: What training reads again; others, as a model card, may well be changed by hand.
_READ_AGAIN = (".json", ".safetensors", ".pt", ".pth", ".bin", ".distcp")


def mark_complete(checkpoint: Path, train_seconds: float) -> None:
    """Say that a checkpoint is written to its end: `complete.json`, with the size of every file."""
    sizes = {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in _files(checkpoint)}
    write_json(checkpoint / _COMPLETE, {"train_seconds": train_seconds, "files": sizes})


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, the newest first."""
    return [checkpoint for checkpoint in _numbered(folder) if (checkpoint / _COMPLETE).is_file()]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; newer, half-written ones are removed.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    for checkpoint in _numbered(folder):
        if (checkpoint / _COMPLETE).is_file():
            _check(checkpoint)
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def train_seconds(checkpoint: Path) -> float:
    """Seconds that were trained until a checkpoint, by all processes of the run.

    Raises:
        InputError: `complete.json` is damaged.
    """
    return _mark(checkpoint)["train_seconds"]


def _numbered(folder: Path) -> list[Path]:
    named = [_NUMBERED.fullmatch(path.name) for path in folder.glob("checkpoint-*")]
    steps = sorted((int(match[1]) for match in named if match), reverse=True)
    return [folder / f"checkpoint-{step}" for step in steps]


def _files(checkpoint: Path) -> list[Path]:
    files = (file for file in sorted(checkpoint.rglob("*")) if file.suffix in _READ_AGAIN and file.is_file())
    return [file for file in files if file.name != _COMPLETE and not file.name.startswith(".")]


def _mark(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / _COMPLETE
    try:
        mark = read_json_object(file)
    except InputError as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(mark.get("train_seconds"), (int, float)):
        raise _damaged(file, "it has no train_seconds")
    return mark


def _check(checkpoint: Path) -> None:
    """Missing files too: without an optimizer's state the Trainer would go on with a fresh one, in silence."""
    for name, size in _mark(checkpoint).get("files", {}).items():
        file = checkpoint / name
        if not file.is_file():
            raise _damaged(file, "it is missing")
        if (found := file.stat().st_size) != size:
            raise _damaged(file, f"it has {found} bytes, {size} were written")
    for file in _files(checkpoint):
        if reason := _unreadable(file):
            raise _damaged(file, reason)


def _unreadable(file: Path) -> str | None:
    """Why a file cannot be read; its tensors are not loaded."""
    try:
        if file.suffix == ".json":
            read_json(file, allow_nan=True)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix == ".distcp":
            return None
        # What torch.save writes is a zip archive.
        elif part := zipfile.ZipFile(file).testzip():
            return f"its part {part} has changed"
    except (ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return str(error)
    return None


def _damaged(file: Path, reason: str) -> InputError:
    checkpoint = next(folder for folder in file.parents if _NUMBERED.fullmatch(folder.name))
    complete = complete_checkpoints(checkpoint.parent)
    before = complete[complete.index(checkpoint) + 1 :]
    gain = f"go on from {before[0].name}, the one before" if before else "train from the start"
    return InputError(f"{file} is damaged ({reason}): delete the folder {checkpoint} to {gain}")
