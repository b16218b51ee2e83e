"""Files that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `file` when the body ends, and is lost when it fails.

    One process at a time may write a file. What a kill leaves has a name that the next attempt takes again.
    """
    temporary = file.with_name(f".{file.name}.partial")
    try:
        # Not through a link that someone has put there.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part of it."""
    with replacing(file) as stream:
        stream.write(content)


def write_text(file: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(file, text.encode())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a loss of power, where the system has a way to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
