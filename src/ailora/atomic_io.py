"""Replace files and folders atomically: readers see the old or the new content, even after a crash or a power loss."""

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

#: Errors of file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
#: Errors of file systems that cannot flush a folder, such as some network and FUSE file systems, and of folders that
#: may be written to but not read.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)
#: Strings that stand for numbers that JSON cannot express. JavaScript and protobuf use these strings too.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextmanager
def replacing_file(file: Path) -> Generator[BinaryIO, None, None]:
    """Open a temporary file, which replaces `file` if the body succeeds and is removed if the body fails.

    During the body, a lock prevents other processes from writing `file`. A symbolic link at `file` is replaced, not
    followed.

    Yields:
        Stream of the temporary file.

    Raises:
        InputError: Another process is writing `file`.
    """
    # The name does not contain the process id, so that the next attempt finds the leftover of a killed process.
    temporary = _temporary_path(file, "partial")
    with _create_locked(temporary, file) as stream:
        try:
            yield stream
            stream.flush()
            # Sync before the rename. Otherwise, `file` could exist without content after a power loss.
            os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(file.parent)


def _create_locked(temporary: Path, file: Path) -> BinaryIO:
    """Create and lock a temporary file, after removing the leftover of a killed process."""
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
        stream.close()  # Between `open` and the lock, another process removed the file as a leftover.


def _remove_leftover(temporary: Path, file: Path) -> None:
    """Remove a temporary file if its process was killed, or raise if the process is still writing `file`."""
    if temporary.is_symlink():
        temporary.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), open(temporary, "rb", opener=refuse_link) as leftover:
        if not _try_lock(leftover):
            raise _busy_error(file)
        # The writer may have renamed the open file and created a new file at this path.
        if _is_at(leftover, temporary):
            temporary.unlink(missing_ok=True)


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Return whether an open file still has this path: it was neither renamed, removed nor replaced."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _try_lock(stream: BinaryIO) -> bool:
    """Lock a file until the stream closes, and return False if another process holds the lock.

    Without support for locks, on Windows and on some file systems, return True.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # the file system has no locks
            return True
    return True


def _busy_error(path: Path) -> InputError:
    return InputError(f"another process is writing to {path}")


def refuse_link(path: str, flags: int) -> int:
    """Open a file, but refuse a link. Use as `open(..., opener=refuse_link)`.

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
    """Build the error for a link in place of an output."""
    return InputError(f"{path} is a link, and nothing is written through links: remove the link or choose another path")


def append_text(file: Path, text: str) -> None:
    """Append text to a UTF-8 file. The write is not atomic.

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
    """Replace the content of a file by UTF-8 text, atomically."""
    write_bytes(file, text.encode())


def write_reason(file: Path, reason: str) -> None:
    """Replace the content of a file by the reason of a failure, which may name a path that is not UTF-8."""
    write_bytes(file, f"{reason}\n".encode(errors="backslashreplace"))


def write_json(file: Path, data: object) -> None:
    """Replace the content of a file by plain data as JSON, atomically."""
    write_bytes(file, json_bytes(data))


def json_bytes(data: object) -> bytes:
    """Format plain data as UTF-8 JSON, indented by two spaces and with a final newline, for files."""
    return (format_json(data, indent=2) + "\n").encode()


def format_json(data: object, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Format plain data as standard JSON, with strings for NaN and infinite numbers.

    Args:
        data: Plain data.
        indent: Number of spaces for each level. None writes a single line.
        ascii_only: Whether to escape characters outside ASCII.

    Returns:
        JSON in which the strings "NaN", "Infinity" and "-Infinity" stand for these numbers.
    """
    # By default, `json` writes NaN and Infinity as bare words, and strict parsers refuse files with such words.
    # Most data have no such numbers, so the data are copied, with strings for these numbers, only after a failure.
    try:
        return json.dumps(data, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(_name_non_finite(data), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def restore_non_finite(data: T) -> T:
    """Replace the strings "NaN", "Infinity" and "-Infinity", which `format_json` writes, by the numbers they name."""
    restored = _replace_leaves(data, lambda leaf: _NON_FINITE.get(leaf, leaf) if isinstance(leaf, str) else leaf)
    return cast("T", restored)


def _name_non_finite(data: object) -> object:
    """Replace NaN and infinite numbers by the strings that stand for them."""
    # By default, `json.dumps` writes such a number as the bare word NaN, Infinity or -Infinity.
    return _replace_leaves(data, lambda leaf: json.dumps(leaf) if _is_non_finite(leaf) else leaf)


def _is_non_finite(leaf: object) -> bool:
    return isinstance(leaf, float) and not math.isfinite(leaf)


def _replace_leaves(data: object, replace: Callable[[object], object]) -> object:
    """Copy nested mappings and lists, with `replace` applied to every other value. Keys are unchanged."""
    if isinstance(data, Mapping):
        return {key: _replace_leaves(value, replace) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_replace_leaves(value, replace) for value in data]
    return replace(data)


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path, None, None]:
    """Create a temporary folder, which replaces `folder` if the body succeeds and is removed if the body fails.

    If the process is killed, `folder` still has its old content, or the next attempt restores the old content.

    Yields:
        Path of the temporary folder, which is empty.

    Raises:
        InputError: Another process is writing to the folder, or the folder is a link.
    """
    if folder.is_symlink():
        raise link_error(folder)
    partial, old = _temporary_path(folder, "partial"), _temporary_path(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock is outside the temporary folder. Inside, it would have to be removed before the rename, and another
    # process could then lock and empty the complete folder.
    lock = _temporary_path(folder, "lock")
    with holding_lock(lock, folder):
        try:
            _restore_or_remove(folder, old)
            _remove(partial)
            partial.mkdir()
            try:
                yield partial
                grant_umask(partial.rglob("*"))
                _sync_tree(partial)
                # After a kill between these two renames, the next attempt undoes the first.
                if folder.exists():
                    folder.rename(old)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                _restore_or_remove(folder, old)
                raise
            sync_folder(folder.parent)
            _remove(old)
        finally:
            # Another process that has already opened this file notices the removal, and creates a new lock.
            lock.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path, *, timeout_s: float = 0.0) -> Generator[Path, None, None]:
    """Create a temporary folder, whose files replace those of the same names in `folder` if the body succeeds.

    Other files in `folder` stay. If the body fails or the process is killed, no file of `folder` has changed. Only a
    kill between two of the final renames leaves new beside old files.

    Args:
        folder: Path of the folder.
        timeout_s: Longest time to wait for another process that is writing to the folder, in seconds.

    Yields:
        Path of the temporary folder, which is empty.

    Raises:
        InputError: Another process is writing to the folder for longer than the timeout, `folder` is a file, or there
            is a folder at the path of a new file, or a file at the path of its parent.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write to {folder}: expected a folder, and it is a file")
    folder.mkdir(parents=True, exist_ok=True)
    # Both are in `folder`, with the names `.files.ailora-partial` and `.files.ailora-lock`.
    partial, lock = (_temporary_path(folder / "files", kind) for kind in ("partial", "lock"))
    with holding_lock(lock, folder, timeout_s=timeout_s):
        try:
            _remove(partial)
            partial.mkdir()
            yield partial
            grant_umask(partial.rglob("*"))
            _sync_tree(partial)
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            targets = [folder / file.relative_to(partial) for file in files]
            for target in targets:
                _validate_replaceable(target)
            for file, target in zip(files, targets, strict=True):
                target.parent.mkdir(exist_ok=True)
                file.replace(target)
                sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _validate_replaceable(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        raise InputError(f"cannot write {file}: it is a folder, and a file is expected")
    if file.parent.exists() and not file.parent.is_dir():
        raise InputError(f"cannot write {file}: {file.parent} is a file, and a folder is expected")


def _restore_or_remove(folder: Path, old: Path) -> None:
    """Restore `old` if `folder` is missing, as after a kill between the two renames. Otherwise, remove `old`."""
    # Restore only a folder: a link or a file with this name is not from this module.
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
    """Hold the lock of a folder during the body. The operating system releases the lock if the process dies.

    On file systems without locks, the body runs without a lock.

    Args:
        lock: Path of the lock file.
        folder: Path of the folder, for the error.
        timeout_s: Longest time to wait for the lock, in seconds.

    Raises:
        InputError: Another process holds the lock for longer than the timeout, or the lock file is a link.
    """
    if lock.is_symlink():
        raise link_error(lock)
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=timeout_s)
    except Timeout:
        raise _busy_error(folder) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        file_lock.release()


def grant_umask(files: Iterable[Path]) -> None:
    """Add the read and write permissions allowed by the umask to files, because some libraries omit them."""
    # Python can read the umask only by setting a new umask. The temporary umask is strict, so that files created by
    # other threads in the meantime are not readable by everyone.
    umask = os.umask(0o077)
    os.umask(umask)
    for file in files:
        mode = file.lstat().st_mode
        granted = stat.S_IMODE(mode) | (0o666 & ~umask)
        if stat.S_ISREG(mode) and granted != stat.S_IMODE(mode):
            with suppress(PermissionError):  # another user owns the file
                file.chmod(granted)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder, such as renamed files, to the disk, where the system and the file system can."""
    if os.name != "posix":
        return
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _temporary_path(path: Path, kind: str) -> Path:
    # The name contains `ailora`, so that a file with such a name is known to be a leftover that may be removed.
    return path.with_name(f".{path.name}.ailora-{kind}")


def _sync_tree(folder: Path) -> None:
    """Flush the files of a folder and its subfolders to the disk, and the entries of the folders themselves."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
