"""Claim a folder that we write, recognize our work in it after a kill, and finish it."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ailora.atomic_io import holding_lock, link_error, write_json, write_text
from ailora.errors import InputError, ModelError
from ailora.formatting import truncate
from ailora.plain_data import read_json_object

#: Our own folder in a folder that we write: the lock, and what a command needs to resume.
OWN_NAME = ".ailora"
_MAX_VALUE_CHARS = 60
#: How safetensors and tokenizers say it.
_RUST_OS_ERROR = re.compile(r"([^: ][^:]*) \(os error (\d+)\)")
_REFUSED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_FORCE_HINT = ", or --force to write into it"


@contextmanager
def lock_folder(
    folder: Path, *, content: str, marks: Iterable[str], force: bool | None = None, timeout_s: float = 0.0
) -> Iterator[None]:
    """Hold a folder for writing, as the only process that does; it is made if it is missing.

    Args:
        folder: Must be empty but for hidden files, or carry one of the marks.
        content: What the folder is expected to hold, for the error message.
        marks: Files that show that the folder holds it.
        force: Take a folder without a mark too. None where the command has no such option.
        timeout_s: Seconds to wait for another process.

    Raises:
        InputError: The folder holds something else, is a file, cannot be written to, or another process holds it.
    """
    own = folder / OWN_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if own.is_symlink():
            raise link_error(own)
        if not force:
            validate_content(folder, content=content, marks=marks, hint="" if force is None else _FORCE_HINT)
        own.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    with holding_lock(own / "lock", folder, timeout_s=timeout_s):
        yield


class Manifest:
    """Names below a folder that a command writes, each noted before it is written: what is not noted is not ours.

    Attributes:
        is_new: Whether nothing was ever noted here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / OWN_NAME / "manifest.json"
        noted = (_read_object(self._file) or {}).get("written")
        self._names = {name for name in noted if isinstance(name, str)} if isinstance(noted, list) else set()
        self.is_new = not self._file.exists()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def validate(self, *names: str) -> None:
        """Refuse to write where something lies that was not noted.

        Raises:
            InputError: A link lies there or on the way, or something that we have not written.
        """
        validate_no_links(self._folder, names)
        for name in names:
            if name not in self and (self._folder / name).exists():
                raise InputError(
                    f"{self._folder / name} was not written by this command, which would replace it: move it away, or "
                    "choose another folder"
                )

    def claim(self, *names: str) -> None:
        """Note what is written next: paths below the folder, which exists.

        Raises:
            InputError: See `validate`.
        """
        self.validate(*names)
        self.adopt(*names)

    def adopt(self, *names: str) -> None:
        """Note that what lies there is ours."""
        if not self._names.issuperset(names):
            self._names.update(names)
            write_json(self._file, {"written": sorted(self._names)})

    def remove(self) -> None:
        """Forget all names."""
        self._file.unlink(missing_ok=True)


def validate_no_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links in the place of what is to be written below a folder, or on the way to it.

    Raises:
        InputError: Names the link.
    """
    paths = [folder / name for name in names]
    for path in sorted({folder, *paths}.union(*(path.parents for path in paths))):
        if folder in path.parents and path.is_symlink():
            raise link_error(path)


def validate_content(folder: Path, *, content: str, marks: Iterable[str], hint: str = "") -> None:
    """Refuse a folder that holds anything but our work; hidden files do not count.

    Raises:
        InputError: Names a file that is not ours.
    """
    if any((folder / mark).is_file() for mark in marks):
        return
    if others := sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")):
        raise InputError(
            f"{folder} is not empty and holds no {content} (it holds {others[0]}): choose another folder{hint}"
        )


def resolve_output_path(path: Path | str) -> Path:
    """Return the path of something that will be written, with `~` expanded.

    Raises:
        InputError: It is no path that the system takes.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"the place to write to is a path, not {path!r}")
    try:
        resolved = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            resolved.lstat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputError(f"the place to write to is a path, not {_shorten(str(path))}: {reason}") from None
    return resolved


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say where writing failed, and why.

    Raises:
        InputError: The system refuses to write, for want of space, permission or the like.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_failure(error: BaseException, folder: Path) -> str | None:
    """Return why the system refused to write below a folder, whichever library met it; None for another error."""
    if isinstance(error, OSError):
        # What is read, or fetched, may fail by lack of permission too.
        ours = str(error.filename).startswith(str(folder)) and error.errno in (errno.EACCES, errno.EPERM)
        return error.strerror if ours or error.errno in _REFUSED_WRITES else None
    if (refusal := _RUST_OS_ERROR.search(str(error))) and int(refusal[2]) in _REFUSED_WRITES:
        return refusal[1]
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error):
        return "torch could not write a file: is the disk full?"
    return None


def validate_inputs_outside(folder: Path, reads: Iterable[Path], writes: Iterable[str] = ()) -> None:
    """Refuse to write where something is read, also where links lead there.

    Args:
        folder: The folder to write.
        reads: Files and folders that are read; those that do not exist are ignored.
        writes: Names of files below the folder.

    Raises:
        InputError: Names what is read.
    """
    homes = {folder.resolve(), *((folder / name).parent.resolve() for name in writes)}
    for path in filter(Path.exists, reads):
        real, named = path.resolve(), path.parent.resolve() / path.name
        if homes & {real, *real.parents, *named.parents}:
            raise InputError(f"{path} is read and lies in {folder}: choose another folder to write")


def describe_differences(requested: Mapping[str, object], recorded: Mapping[str, object]) -> str:
    """Name the dotted keys in which two requests differ, with both values; empty where they agree."""
    now, there = _flatten(requested), _flatten(recorded)
    keys = [key for key in sorted(now.keys() | there.keys()) if now.get(key) != there.get(key)]
    return "; ".join(f"{key}: {_shorten(there.get(key))} there, {_shorten(now.get(key))} now" for key in keys)


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key in value for k, v in _flatten(value[key], f"{prefix}.{key}" if prefix else str(key)).items()}


def _shorten(value: object) -> str:
    return truncate(repr(value), _MAX_VALUE_CHARS)


class OutputDir:
    """The folder of a command that resumes: unfinished parts lie in `.ailora/`, and every finished file is complete.

    `.ailora/request.json` holds what was asked for until it is made; `.ailora/done.json`, written last, by which
    request the folder was made, and the sizes of its files.

    Attributes:
        folder: The folder.
        parts: Where finished parts of an adapter wait.
        shards: Where shards grow.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = resolve_output_path(folder)
        own = self.folder / OWN_NAME
        self.parts = own / "pieces"
        self.shards = own / "shards"
        self._failed = own / "failed.txt"
        self._request = own / "request.json"
        self._done = own / "done.json"
        self._writes: list[str] = []

    @contextmanager
    def acquire(
        self, request: Mapping[str, object], *, reads: Iterable[Path], writes: Iterable[str], force: bool
    ) -> Iterator[bool]:
        """Hold the folder for a request while the body runs; yields whether all of it is made already.

        Args:
            request: Everything that decides the result, as plain data.
            reads: Files that are read; the result may not be written to where they are.
            writes: Names of the files that will be written, below the folder.
            force: Remove files of these names, whoever wrote them, and what an earlier request wrote here.

        Raises:
            InputError: Something that is read lies in the folder; it holds other files, the result of another request
                or of one that was changed since, or the beginning of another request (the keys that differ are named);
                a link lies where something will be written; another process writes to it; or writing fails while the
                body runs, for want of space or the like.
        """
        self._writes = sorted(writes)
        validate_inputs_outside(self.folder, reads, self._writes)
        marks = [str(mark.relative_to(self.folder)) for mark in (self._request, self._done)]
        with lock_folder(self.folder, content="output of this command", marks=marks, force=force):
            try:
                own = [f"{OWN_NAME}/{folder.name}" for folder in (self.parts, self.shards)]
                validate_no_links(self.folder, [*self._writes, *own])
                for folder in (self.parts, self.shards):
                    folder.mkdir(exist_ok=True)
                done = self._begin(json.loads(json.dumps(request)), force=force)
                try:
                    yield done
                except (InputError, ModelError) as error:
                    # It will fail again: another request may have the folder.
                    write_text(self._failed, f"{error}\n")
                    raise
            except OSError as error:
                raise InputError(
                    f"cannot go on writing to {self.folder} ({error.strerror or error}): what is there is kept, and "
                    "the same command goes on from it"
                ) from error

    def finish(self) -> None:
        """Record that everything is made, and drop what was kept to resume after a kill."""
        files = {name: file_state(self.folder / name) for name in self._writes if (self.folder / name).is_file()}
        digest = _digest(read_json_object(self._request))
        write_json(self._done, {"request": digest, "files": files})
        self._tidy()

    def _begin(self, request: dict[str, object], *, force: bool) -> bool:
        """Find our place: whether the request is done, or else a folder that is ready for it."""
        if self._done.is_file():
            if self._is_result_of(request):
                self._tidy()
                return True
            if not force:
                raise InputError(
                    f"{self.folder} holds the finished result of another request, or it was changed since: choose "
                    "another folder, or --force to replace it"
                )
        started = _read_object(self._request)
        if started is not None and started != request and not force and not self._failed.exists():
            raise InputError(
                f"{self.folder} holds the beginning of another request ({describe_differences(request, started)}): "
                "repeat that one to complete it, choose another folder, or --force to replace it"
            )
        if started != request or self._done.is_file() or force:
            self._claim(force=force)
            self._clear()
            write_json(self._request, request)
        self._failed.unlink(missing_ok=True)
        return False

    def _claim(self, *, force: bool) -> None:
        """Note what will be written; without `force`, refuse files that no request of ours has written or begun."""
        manifest = Manifest(self.folder)
        if force:
            manifest.adopt(*self._writes)
        else:
            manifest.claim(*self._writes)

    def _is_result_of(self, request: Mapping[str, object]) -> bool:
        done = _read_object(self._done) or {}
        files = done.get("files")
        if done.get("request") != _digest(request) or not isinstance(files, dict):
            return False
        paths = {self.folder / name: state for name, state in files.items()}
        return all(path.is_file() and file_state(path) == state for path, state in paths.items())

    def _clear(self) -> None:
        """Make room: remove only files that will be written, or that an earlier request of ours wrote."""
        earlier = (_read_object(self._done) or {}).get("files")
        ours = {*self._writes, *(str(name) for name in (earlier if isinstance(earlier, dict) else ()))}
        weights = any(name.endswith(".safetensors") and "adapter_model" not in name for name in self._writes)
        for file in self.folder.glob("*.safetensors") if weights else ():
            if file.name not in ours:
                raise InputError(f"{file} is not of this command, and loaders might take it: move it away first")
        for name in ours:
            path = self.folder / name
            if path.resolve().is_relative_to(self.folder.resolve()) and path.is_file():
                path.unlink()
        for folder in (self.parts, self.shards):
            shutil.rmtree(folder)
            folder.mkdir()
        self._done.unlink(missing_ok=True)

    def _tidy(self) -> None:
        for folder in (self.parts, self.shards):
            shutil.rmtree(folder, ignore_errors=True)
        self._failed.unlink(missing_ok=True)
        Manifest(self.folder).remove()
        self._request.unlink(missing_ok=True)


def validate_finished(folder: Path) -> None:
    """Refuse a folder that a command of ours began to fill, and has not finished.

    Raises:
        InputError: The command was cut short, or is running.
    """
    if (folder / OWN_NAME / "request.json").is_file():
        raise InputError(f"{folder} is not finished: the command that began it completes it")


def file_state(file: Path) -> list[int]:
    """Return what tells two states of a file apart without reading it: bytes, and the last change in ns."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_object(file: Path) -> dict[str, object] | None:
    try:
        return read_json_object(file)
    except InputError:
        return None


def _digest(request: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
