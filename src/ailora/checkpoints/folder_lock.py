"""Lock output folders, so that a single process writes, and only into a folder with the expected content."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from ailora.atomic_io import holding_lock, link_error
from ailora.errors import InputError
from ailora.plain_data import read_json_object

#: Subfolder of every output folder, with the lock and the state of an unfinished command.
STATE_DIR_NAME = ".ailora"
_FORCE_HINT = ", or use --force to write into it"


@contextmanager
def lock_folder(
    folder: Path, *, content: str, marks: Iterable[str], force: bool | None = None, timeout_s: float = 0.0
) -> Generator[None, None, None]:
    """Lock a folder for writing, and create a missing folder.

    Args:
        folder: Folder to lock. It must hold a file named in `marks`, or no visible file.
        content: Expected content of the folder, for the error message.
        marks: Names of files that identify the expected content.
        force: Whether to accept a folder with unexpected content. None for commands without this option.
        timeout_s: Seconds to wait until another process releases the lock.

    Raises:
        InputError: The folder has unexpected content, is a file, is not writable, or is locked by another process.
    """
    state_dir = folder / STATE_DIR_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Through a link, the lock would be written outside the folder.
        if state_dir.is_symlink():
            raise link_error(state_dir)
        if not force:
            validate_content(folder, content=content, marks=marks, hint="" if force is None else _FORCE_HINT)
        state_dir.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    with holding_lock(state_dir / "lock", folder, timeout_s=timeout_s):
        yield


def validate_content(folder: Path, *, content: str, marks: Iterable[str], hint: str = "") -> None:
    """Refuse a folder with unexpected content. Hidden files are always allowed.

    Args:
        folder: Existing folder.
        content: Expected content of the folder, for the error message.
        marks: Names of files that identify the expected content.
        hint: Text to append to the error message.

    Raises:
        InputError: The folder holds visible files, but no file named in `marks`. The message names a file.
    """
    if any((folder / mark).is_file() for mark in marks):
        return
    if names := sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")):
        raise InputError(
            f"{folder} is not empty and holds no {content} (it holds {names[0]}): choose another folder{hint}"
        )


def read_state_file(file: Path) -> dict[str, object] | None:
    """Return the content of a JSON file in the state folder. None if the file is missing or damaged."""
    # A file damaged by a power loss must not block its folder: the command starts again, or asks for `--force`.
    try:
        return read_json_object(file)
    except InputError:
        return None
