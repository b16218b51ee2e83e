"""Replace files and folders atomically: readers see the old content or the new, also after a crash or a power loss."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from filelock import FileLock, Timeout

from ailora.errors import InputError

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

#: Texts for the numbers that JSON has no syntax for, as JavaScript and protobuf name them.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextmanager
def replacing_file(file: Path) -> Generator[BinaryIO, None, None]:
    """Open a temporary file beside `file`, which replaces `file` if the body succeeds and is removed if it fails.

    A single process at a time writes a file. A link at `file` is replaced, not followed.

    Yields:
        Stream of the temporary file.

    Raises:
        InputError: Another process is writing the file.
    """
    # A fixed name, without the number of the process: the next attempt removes the leftover of a killed one.
    temporary = _temporary_path(file, "partial")
    with _create_locked(temporary, file) as stream:
        try:
            yield stream
            stream.flush()
            # Before the rename, or a power loss could leave the new name with no content.
            os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(file.parent)


def _create_locked(temporary: Path, file: Path) -> BinaryIO:
    """Create a temporary file with a lock of this process, in the place of the leftover of a killed process."""
    while True:
        try:
            stream = temporary.open("xb")
        except FileExistsError:
            _remove_leftover(temporary, file)
            continue
        if not _try_lock(stream):
            stream.close()
            raise _busy_error(file)
        if _is_at(stream, temporary):
            return stream
        stream.close()  # between creation and lock, another process removed the file as a leftover


def _remove_leftover(temporary: Path, file: Path) -> None:
    if temporary.is_symlink():
        temporary.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), open(temporary, "rb", opener=refuse_link) as leftover:
        if not _try_lock(leftover):
            raise _busy_error(file)
        # Since the file was opened, its writer may have renamed it and created another.
        if _is_at(leftover, temporary):
            temporary.unlink(missing_ok=True)


def _is_at(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _try_lock(stream: BinaryIO) -> bool:
    """Lock a file until it is closed; return False if another process holds the lock."""
    if sys.platform != "win32":
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


def _busy_error(path: Path) -> InputError:
    return InputError(f"another process is writing to {path}")


def refuse_link(path: str, flags: int) -> int:
    """Open a file, but not through a link: the opener of `open(..., opener=refuse_link)`.

    Returns:
        File descriptor.

    Raises:
        InputError: The path is a link.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link_error(Path(path)) from None
        raise


def link_error(path: Path) -> InputError:
    """Return the error for a link in the place of an output."""
    return InputError(f"{path} is a link, and nothing is written through links: remove it or choose another place")


def append_text(file: Path, text: str) -> None:
    """Append a text to a file in UTF-8. The write is not atomic.

    Raises:
        InputError: The file is a link.
    """
    with open(file, "a", encoding="utf-8", opener=refuse_link) as stream:
        stream.write(text)


def write_bytes(file: Path, content: bytes) -> None:
    """Replace the content of a file atomically."""
    with replacing_file(file) as stream:
        stream.write(content)


def write_text(file: Path, text: str) -> None:
    """Replace the content of a file by a text in UTF-8, atomically."""
    write_bytes(file, text.encode())


def write_json(file: Path, data: object) -> None:
    """Replace the content of a file by plain data as JSON, atomically."""
    write_bytes(file, json_bytes(data))


def json_bytes(data: object) -> bytes:
    """Format plain data as UTF-8 JSON in the layout of all our files: two spaces, a newline at the end."""
    return (format_json(data, indent=2) + "\n").encode()


def format_json(data: object, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Format plain data as standard JSON, with infinite numbers and NaN as texts.

    Args:
        data: Plain data.
        indent: Spaces of each level. None: a single line.
        ascii_only: Whether characters beyond ASCII are escaped.

    Returns:
        JSON with the texts "NaN", "Infinity" and "-Infinity" in the place of these numbers.
    """
    # Python's own NaN and Infinity are no JSON, and strict parsers refuse the whole file. The copy for their texts is
    # made only if there are any.
    try:
        return json.dumps(data, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(_name_non_finite(data), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def restore_non_finite(data: T) -> T:
    """Replace the texts "NaN", "Infinity" and "-Infinity" of `format_json` by the numbers."""
    restored = _replace_leaves(data, lambda leaf: _NON_FINITE.get(leaf, leaf) if isinstance(leaf, str) else leaf)
    return cast("T", restored)


def _name_non_finite(data: object) -> object:
    return _replace_leaves(data, lambda leaf: json.dumps(leaf) if _is_non_finite(leaf) else leaf)


def _is_non_finite(leaf: object) -> bool:
    return isinstance(leaf, float) and not math.isfinite(leaf)


def _replace_leaves(data: object, replace: Callable[[object], object]) -> object:
    """Copy nested mappings and lists with their values replaced, and their keys unchanged."""
    if isinstance(data, Mapping):
        return {key: _replace_leaves(value, replace) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_replace_leaves(value, replace) for value in data]
    return replace(data)


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path, None, None]:
    """Create a temporary folder beside `folder`, which replaces `folder` if the body succeeds, else is removed.

    After a kill the old folder is in its place, or the next attempt restores it.

    Yields:
        The temporary folder, empty except for a lock.

    Raises:
        InputError: Another process is writing to the folder, or the folder is a link.
    """
    if folder.is_symlink():
        raise link_error(folder)
    partial, old = _temporary_path(folder, "partial"), _temporary_path(folder, "old")
    if partial.is_symlink():
        partial.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    lock = partial / ".lock"
    with holding_lock(lock, folder):
        _finish_exchange(folder, old)
        for leftover in partial.iterdir():
            if leftover != lock:
                _remove(leftover)
        try:
            yield partial
            lock.unlink()
            grant_umask(partial.rglob("*"))
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            # A kill between these two renames is undone by the next attempt.
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            _finish_exchange(folder, old)
            raise
        sync_folder(folder.parent)
        _remove(old)


def _finish_exchange(folder: Path, old: Path) -> None:
    """Undo an exchange that stopped between its renames, or remove the old folder of a complete exchange."""
    # Only a folder goes back: a link or a file with this name is none of ours.
    if old.is_dir() and not old.is_symlink() and not folder.exists():
        old.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def holding_lock(lock: Path, folder: Path, *, timeout_s: float = 0.0) -> Generator[None, None, None]:
    """Hold the lock file of a folder during the body. The system releases the lock if the process dies.

    Args:
        lock: The lock file.
        folder: The folder, for the error.
        timeout_s: Time in seconds to wait for another process.

    Raises:
        InputError: Another process holds the lock longer than the timeout, or the lock file is a link.
    """
    if lock.is_symlink():
        raise link_error(lock)
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=timeout_s)
    except Timeout:
        raise _busy_error(folder) from None
    try:
        yield
    finally:
        file_lock.release()


def grant_umask(files: Iterable[Path]) -> None:
    """Add the read and write permissions that the umask allows."""
    # Libraries write files that only their owner may read. The umask is read by setting another: a strict one, so that
    # no file of another thread is too open in between.
    umask = os.umask(0o077)
    os.umask(umask)
    for file in files:
        mode = file.lstat().st_mode
        granted = stat.S_IMODE(mode) | (0o666 & ~umask)
        if stat.S_ISREG(mode) and granted != stat.S_IMODE(mode):
            with suppress(PermissionError):  # of another user
                file.chmod(granted)


def sync_folder(folder: Path) -> None:
    """Force renames in a folder to the disk, so that they survive a power loss. Does nothing on Windows."""
    if os.name == "posix":
        _sync(folder)


def _temporary_path(path: Path, kind: str) -> Path:
    # Our name is part of the file's name: we may remove whatever has such a name.
    return path.with_name(f".{path.name}.ailora-{kind}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
