"""Checkpoints of a run: mark complete checkpoints, and find and validate the newest."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open

from ailora.atomic_io import grant_umask, write_json
from ailora.errors import InputError
from ailora.plain_data import read_json, read_json_object

_COMPLETE = "complete.json"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
#: Suffixes of the files that a resumed run reads. Users may edit other files, such as a model card.
_RESUMED_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".bin", ".distcp")

Content = TypeVar("Content", bound=BaseModel)


def mark_complete(checkpoint: Path, train_seconds: float) -> None:
    """Mark a checkpoint as complete: write `complete.json`, with the size and SHA-256 of every file.

    Args:
        checkpoint: Folder of the checkpoint.
        train_seconds: Duration of training up to the checkpoint, in seconds.
    """
    files = _list_files(checkpoint)
    grant_umask(files)
    states = {file.relative_to(checkpoint).as_posix(): _FileState.from_file(file).model_dump() for file in files}
    write_json(checkpoint / _COMPLETE, {"train_seconds": train_seconds, "files": states})


def list_checkpoints(folder: Path) -> list[Path]:
    """List complete and incomplete checkpoints in a folder, from the newest to the oldest."""
    name_matches = [_CHECKPOINT_NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*")]
    matches = sorted((match for match in name_matches if match), key=lambda match: int(match[1]), reverse=True)
    return [folder / match[0] for match in matches]


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is marked as complete."""
    return (checkpoint / _COMPLETE).is_file()


def list_complete_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in a folder, from the newest to the oldest."""
    return [checkpoint for checkpoint in list_checkpoints(folder) if is_complete(checkpoint)]


def find_newest_checkpoint(folder: Path, *, is_of_run: Callable[[Path], bool]) -> Path | None:
    """Find and validate the newest complete checkpoint. Remove newer, incomplete checkpoints of this run.

    Args:
        folder: Folder with the checkpoints.
        is_of_run: Function (folder of a checkpoint) -> whether this run has written the checkpoint.

    Returns:
        The checkpoint. None if no checkpoint is complete.

    Raises:
        InputError: A file of the checkpoint is missing or damaged.
    """
    for checkpoint in list_checkpoints(folder):
        if is_complete(checkpoint):
            _validate_files(checkpoint)
            return checkpoint
        if is_of_run(checkpoint):
            shutil.rmtree(checkpoint)
    return None


def read_train_seconds(checkpoint: Path) -> float:
    """Read the duration of training up to a checkpoint, in seconds.

    Raises:
        InputError: `complete.json` is damaged.
    """
    return _read_mark(checkpoint).train_seconds


def _list_files(checkpoint: Path) -> list[Path]:
    files = (file for file in sorted(checkpoint.rglob("*")) if file.suffix in _RESUMED_SUFFIXES and file.is_file())
    return [file for file in files if file.name != _COMPLETE and not file.name.startswith(".")]


class _FileState(BaseModel):
    """Size and SHA-256 of a file in a checkpoint. Checkpoints from before version 0.1 have no digests."""

    bytes: int
    sha256: str | None = None

    @classmethod
    def from_file(cls, file: Path) -> _FileState:
        with file.open("rb") as stream:
            return cls(bytes=file.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


class _Mark(BaseModel):
    """Content of `complete.json`. Before version 0.1, `files` was missing or mapped names to sizes."""

    train_seconds: float = Field(ge=0, allow_inf_nan=False)
    files: dict[str, int | _FileState] = {}


class _Progress(BaseModel):
    """Progress of training, from `trainer_state.json`."""

    global_step: int
    max_steps: int


def _read_mark(checkpoint: Path) -> _Mark:
    return _read_content(checkpoint / _COMPLETE, _Mark)


def _read_content(file: Path, kind: type[Content]) -> Content:
    try:
        return kind.model_validate(read_json_object(file, allow_nan=True), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damaged_error(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except InputError as error:
        raise _damaged_error(file, str(error)) from None


def _validate_files(checkpoint: Path) -> None:
    """Validate the files of a checkpoint: all must exist and be unchanged."""
    # Without the optimizer's state, the Trainer would silently resume with a new optimizer.
    for name, state in _read_mark(checkpoint).files.items():
        file = checkpoint / name
        if not file.is_file():
            raise _damaged_error(file, "it is missing")
        recorded = state if isinstance(state, _FileState) else _FileState(bytes=state)
        if (size := file.stat().st_size) != recorded.bytes:
            raise _damaged_error(file, f"expected {recorded.bytes} bytes, got {size}")
        if recorded.sha256 is not None and _FileState.from_file(file).sha256 != recorded.sha256:
            raise _damaged_error(file, "its content has changed since it was written")
    for file in _list_files(checkpoint):
        if reason := _describe_unreadable(file):
            raise _damaged_error(file, reason)
    _validate_state(checkpoint / "trainer_state.json")


def _validate_state(file: Path) -> None:
    """Validate that `trainer_state.json` contains the step in the checkpoint's name."""
    if not file.is_file():
        raise _damaged_error(file, "it is missing")
    # A state of step 0 of 0 would count as finished training.
    progress, step = _read_content(file, _Progress), int(file.parent.name.removeprefix("checkpoint-"))
    if progress.global_step != step or progress.max_steps < step:
        raise _damaged_error(file, f"expected step {step}, got step {progress.global_step} of {progress.max_steps}")


def _describe_unreadable(file: Path) -> str | None:
    """Return the reason why a file is unreadable, or None. Tensors are not loaded."""
    try:
        if file.suffix == ".json":
            # transformers writes a loss that is not finite as NaN into `trainer_state.json`.
            read_json(file, allow_nan=True)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix == ".distcp":
            # Shards of torch.distributed.checkpoint are not zip archives. Only size and SHA-256 can be compared.
            return None
        # The remaining suffixes belong to files from `torch.save`, which are zip archives with checksums.
        elif part := zipfile.ZipFile(file).testzip():
            return f"the checksum of its part {part} is wrong"
    except (ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return str(error)
    return None


def _damaged_error(file: Path, reason: str) -> InputError:
    checkpoint = next(folder for folder in file.parents if _CHECKPOINT_NAME.fullmatch(folder.name))
    complete = list_complete_checkpoints(checkpoint.parent)
    older = complete[complete.index(checkpoint) + 1 :]
    remedy = f"resume from {older[0].name}, the previous checkpoint" if older else "train from the start"
    return InputError(f"{file} is damaged ({reason}): delete the folder {checkpoint} to {remedy}")
