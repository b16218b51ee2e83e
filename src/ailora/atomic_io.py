"""Replace files and folders atomically: a reader sees the old content or the new, whenever process or machine stops."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ailora.errors import InputError

#: Names of numbers that JSON has no word for, as JavaScript and protobuf call them.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
if sys.platform != "win32":
    import fcntl


@contextmanager
def replacing_file(file: Path) -> Iterator[BinaryIO]:
    """Open a stream whose content takes the place of `file` when the body ends, and is lost when it fails.

    One process at a time writes a file. What a kill leaves has a name that the next attempt takes again. A link at
    `file` is replaced, not followed.

    Yields:
        The stream of a temporary file beside `file`.

    Raises:
        InputError: Another process is writing the file.
    """
    temporary = _beside(file, "partial")
    with _create_locked(temporary, file) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(file.parent)


def _create_locked(temporary: Path, file: Path) -> BinaryIO:
    """Create a temporary file that this process holds; one that a killed process left is removed."""
    while True:
        try:
            stream = temporary.open("xb")
        except FileExistsError:
            _remove_leftover(temporary, file)
            continue
        if not _lock(stream):
            stream.close()
            raise _busy(file)
        if _is_at(stream, temporary):
            return stream
        stream.close()  # another process took it for a leftover before it was locked


def _remove_leftover(temporary: Path, file: Path) -> None:
    if temporary.is_symlink():
        temporary.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), open(temporary, "rb", opener=refuse_link) as leftover:
        if not _lock(leftover):
            raise _busy(file)
        # Its writer may have renamed it since, and begun another one.
        if _is_at(leftover, temporary):
            temporary.unlink(missing_ok=True)


def _is_at(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _lock(stream: BinaryIO) -> bool:
    """Lock a file until it is closed, where the system can; False if another process holds it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


def _busy(path: Path) -> InputError:
    return InputError(f"another process is writing to {path}")


def refuse_link(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=refuse_link)`, unless a link stands in its place.

    Raises:
        InputError: It is a link.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link_error(Path(path)) from None
        raise


def link_error(path: Path) -> InputError:
    """Return the error for a link in the place of something that is to be written."""
    return InputError(f"{path} is a link: what it leads to is not written to; remove the link or choose another place")


def append_text(file: Path, text: str) -> None:
    """Append a text to a file, in UTF-8.

    Raises:
        InputError: The file is a link.
    """
    with open(file, "a", encoding="utf-8", opener=refuse_link) as stream:
        stream.write(text)


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a file by these bytes."""
    with replacing_file(file) as stream:
        stream.write(content)


def write_text(file: Path, text: str) -> None:
    """Replace a file by this text, in UTF-8."""
    write_bytes(file, text.encode())


def write_json(file: Path, data: object) -> None:
    """Replace a file by plain data."""
    write_bytes(file, json_bytes(data))


def json_bytes(data: object) -> bytes:
    """Format plain data as every JSON file that we write."""
    return (format_json(data, indent=2) + "\n").encode()


def format_json(data: object, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Format plain data as JSON, which has no word for numbers that are not finite.

    Args:
        data: Plain data.
        indent: Spaces of each level. None: all on one line.
        ascii_only: Whether other characters are written as escapes.

    Returns:
        JSON with "NaN", "Infinity" and "-Infinity" as texts in the place of such numbers.
    """
    try:
        return json.dumps(data, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(_name_non_finite(data), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def restore_non_finite(data: Any) -> Any:
    """Return plain data that `format_json` wrote with the numbers that are not finite in the place of their names."""
    return _replace_leaves(data, lambda leaf: _NON_FINITE.get(leaf, leaf) if isinstance(leaf, str) else leaf)


def _name_non_finite(data: Any) -> Any:
    return _replace_leaves(data, lambda leaf: json.dumps(leaf) if _is_non_finite(leaf) else leaf)


def _is_non_finite(leaf: object) -> bool:
    return isinstance(leaf, float) and not math.isfinite(leaf)


def _replace_leaves(data: Any, replace: Callable[[Any], Any]) -> Any:
    """Replace the values of nested mappings and lists; their keys stay."""
    if isinstance(data, Mapping):
        return {key: _replace_leaves(value, replace) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_replace_leaves(value, replace) for value in data]
    return replace(data)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Fill a new folder, which takes the place of `folder` when the body ends, and is removed when it fails.

    After a kill either the old folder is in its place, or the next attempt puts it back.

    Yields:
        The new folder beside `folder`, empty but for a lock.

    Raises:
        InputError: Another process is writing to the folder, or it is a link.
    """
    if folder.is_symlink():
        raise link_error(folder)
    partial, old = _beside(folder, "partial"), _beside(folder, "old")
    if partial.is_symlink():
        partial.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    lock = partial / ".lock"
    with holding(lock, folder):
        _put_back(folder, old)
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
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            _put_back(folder, old)
            raise
        sync_folder(folder.parent)
        _remove(old)


def _put_back(folder: Path, old: Path) -> None:
    """Undo half of an exchange, or remove what a whole one has left."""
    if old.is_dir() and not old.is_symlink() and not folder.exists():
        old.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def holding(lock: Path, folder: Path, *, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file while the body writes to a folder; the system lets go of it when the process ends.

    Raises:
        InputError: Another process holds it longer than the timeout.
    """
    if lock.is_symlink():
        raise link_error(lock)
    held = FileLock(lock)
    try:
        held.acquire(timeout=timeout_s)
    except Timeout:
        raise _busy(folder) from None
    try:
        yield
    finally:
        held.release()


def grant_umask(files: Iterable[Path]) -> None:
    """Give files of ours the permissions that the umask allows: libraries write theirs for one user alone."""
    # Read by setting a strict one for a moment: what another thread makes meanwhile is never too open.
    umask = os.umask(0o077)
    os.umask(umask)
    for file in files:
        mode = file.lstat().st_mode
        granted = stat.S_IMODE(mode) | (0o666 & ~umask)
        if stat.S_ISREG(mode) and granted != stat.S_IMODE(mode):
            with suppress(PermissionError):  # of another user
                file.chmod(granted)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a loss of power, where the system has a way to."""
    if os.name == "posix":
        _sync(folder)


def _beside(path: Path, kind: str) -> Path:
    """Return a name of ours beside a path, which says that what carries it may be removed."""
    return path.with_name(f".{path.name}.ailora-{kind}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
