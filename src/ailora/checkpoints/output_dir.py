"""Output folders of commands: lock them, resume interrupted commands, and record finished ones."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ailora.atomic_io import holding_lock, link_error, write_json, write_text
from ailora.errors import InputError, ModelError
from ailora.formatting import truncate
from ailora.plain_data import read_json_object

#: Subfolder of every output folder that holds the lock and the state of an unfinished command.
OWN_NAME = ".ailora"
_MAX_VALUE_CHARS = 60
#: How safetensors and tokenizers, which are written in Rust, report an error of the operating system.
_RUST_OS_ERROR = re.compile(r"([^: ][^:]*) \(os error (\d+)\)")
_REFUSED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_FORCE_HINT = ", or --force to write into it"


@contextmanager
def lock_folder(
    folder: Path, *, content: str, marks: Iterable[str], force: bool | None = None, timeout_s: float = 0.0
) -> Generator[None, None, None]:
    """Lock a folder for writing, and create it if it is missing.

    Args:
        folder: Folder to lock. It must be empty except for hidden files, or contain a mark.
        content: Expected content of the folder, for the error message.
        marks: Names of files that identify the expected content.
        force: Whether to accept a folder with unexpected content. None for commands without this option.
        timeout_s: Seconds to wait until another process releases the lock.

    Raises:
        InputError: The folder has unexpected content, is a file, is not writable, or is locked by another process.
    """
    state_dir = folder / OWN_NAME
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


class Manifest:
    """Record of the files that commands write below a folder; a name is recorded before its file is written.

    Attributes:
        is_new: Whether the folder has no manifest yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / OWN_NAME / "manifest.json"
        names = (_read_object(self._file) or {}).get("written")
        self._names = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
        self.is_new = not self._file.exists()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def validate(self, *names: str) -> None:
        """Refuse to replace files that are not recorded.

        Args:
            names: Paths below the folder.

        Raises:
            InputError: A path or a folder on the way to it is a link, or an unrecorded file exists.
        """
        validate_no_links(self._folder, names)
        for name in names:
            if name not in self and (self._folder / name).exists():
                raise InputError(
                    f"{self._folder / name} was not written by this command, which would replace it: move it away, or "
                    "choose another folder"
                )

    def claim(self, *names: str) -> None:
        """Record names before their files are written.

        Args:
            names: Paths below the folder, which must exist.

        Raises:
            InputError: A path is a link, or an unrecorded file exists.
        """
        self.validate(*names)
        # Names come before files, so that a file truncated by a kill is recognized as ours.
        self.adopt(*names)

    def adopt(self, *names: str) -> None:
        """Record names without looking at existing files."""
        if not self._names.issuperset(names):
            self._names.update(names)
            write_json(self._file, {"written": sorted(self._names)})

    def remove(self) -> None:
        """Remove the manifest."""
        self._file.unlink(missing_ok=True)


def validate_no_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links among output files and the folders that contain them.

    Args:
        folder: Output folder. Its own path may contain links.
        names: Paths below the folder.

    Raises:
        InputError: A path is a link. The message names it.
    """
    paths = [folder / name for name in names]
    for path in sorted({folder, *paths}.union(*(path.parents for path in paths))):
        if folder in path.parents and path.is_symlink():
            raise link_error(path)


def validate_content(folder: Path, *, content: str, marks: Iterable[str], hint: str = "") -> None:
    """Refuse a folder with unexpected content. Hidden files do not count.

    Args:
        folder: Existing folder.
        content: Expected content of the folder, for the error message.
        marks: Names of files that identify the expected content.
        hint: Text to append to the error message.

    Raises:
        InputError: The folder has files and no mark. The message names a file.
    """
    if any((folder / mark).is_file() for mark in marks):
        return
    if names := sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")):
        raise InputError(
            f"{folder} is not empty and holds no {content} (it holds {names[0]}): choose another folder{hint}"
        )


def resolve_output_path(path: Path | str) -> Path:
    """Return the path of an output file or folder, with `~` expanded.

    Raises:
        InputError: The path is invalid on this system.
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
def writing(path: Path) -> Generator[None, None, None]:
    """Convert errors of the operating system into an `InputError` with the path and the reason.

    Raises:
        InputError: Writing failed, for example because the disk is full or a permission is missing.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_failure(error: BaseException, folder: Path) -> str | None:
    """Describe why writing below a folder failed, from the exception of any library.

    Args:
        error: The exception.
        folder: Folder to write to.

    Returns:
        The reason. None if the exception is not about writing.
    """
    if isinstance(error, OSError):
        # A missing permission can also make reading or downloading fail.
        is_output = str(error.filename).startswith(str(folder)) and error.errno in (errno.EACCES, errno.EPERM)
        return error.strerror if is_output or error.errno in _REFUSED_WRITES else None
    if (refusal := _RUST_OS_ERROR.search(str(error))) and int(refusal[2]) in _REFUSED_WRITES:
        return refusal[1]
    # torch.save raises a RuntimeError from its zip writer, which does not give the reason.
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error):
        return "torch could not write a file: is the disk full?"
    return None


def validate_inputs_outside(folder: Path, reads: Iterable[Path], writes: Iterable[str] = ()) -> None:
    """Refuse an output folder that contains inputs of the command, directly or through links.

    Args:
        folder: Output folder.
        reads: Input files and folders; missing ones are ignored.
        writes: Names of output files below the folder.

    Raises:
        InputError: An input is inside. The message names it.
    """
    output_folders = {folder.resolve(), *((folder / name).parent.resolve() for name in writes)}
    for path in filter(Path.exists, reads):
        real, named = path.resolve(), path.parent.resolve() / path.name
        if output_folders & {real, *real.parents, *named.parents}:
            raise InputError(f"{path} is read and lies in {folder}: choose another folder to write")


def describe_differences(requested: Mapping[str, object], recorded: Mapping[str, object]) -> str:
    """Format the differences between two requests: dotted keys, each with both values.

    Args:
        requested: Request of the running command.
        recorded: Request of the command that began the folder.

    Returns:
        The differences. Empty if the requests are equal.
    """
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
    """Output folder of a command that can be interrupted and resumed.

    Unfinished files are in `.ailora/`; all files outside of it are complete. `.ailora/request.json` holds the request
    until the command finishes. `.ailora/done.json`, written last, holds a digest of the request and the sizes and
    modification times of the files.

    Attributes:
        folder: Path of the folder.
        parts: Subfolder for finished parts of an adapter.
        shards: Subfolder for unfinished shards.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = resolve_output_path(folder)
        state_dir = self.folder / OWN_NAME
        self.parts = state_dir / "pieces"
        self.shards = state_dir / "shards"
        self._failed = state_dir / "failed.txt"
        self._request = state_dir / "request.json"
        self._done = state_dir / "done.json"
        self._writes: list[str] = []

    @contextmanager
    def acquire(
        self, request: Mapping[str, object], *, reads: Iterable[Path], writes: Iterable[str], force: bool
    ) -> Generator[bool, None, None]:
        """Lock the folder for a request while the body runs.

        Args:
            request: Inputs that determine the result, as plain data.
            reads: Input files, which must not be in the folder.
            writes: Paths of the output files, relative to the folder.
            force: Whether to remove existing files with these names, and the results of an earlier request.

        Yields:
            Whether the request is already finished.

        Raises:
            InputError: The folder contains inputs, links, unexpected files, or results of a different request (the
                message names the keys that differ); another process has locked the folder; or writing fails.
        """
        self._writes = sorted(writes)
        validate_inputs_outside(self.folder, reads, self._writes)
        marks = [str(mark.relative_to(self.folder)) for mark in (self._request, self._done)]
        with lock_folder(self.folder, content="output of this command", marks=marks, force=force):
            try:
                state_dirs = [f"{OWN_NAME}/{folder.name}" for folder in (self.parts, self.shards)]
                validate_no_links(self.folder, [*self._writes, *state_dirs])
                for folder in (self.parts, self.shards):
                    folder.mkdir(exist_ok=True)
                done = self._begin(json.loads(json.dumps(request)), force=force)
                try:
                    yield done
                except (InputError, ModelError) as error:
                    # The request would fail again, so that a different request may take over the folder.
                    write_text(self._failed, f"{error}\n")
                    raise
            except OSError as error:
                raise InputError(
                    f"cannot go on writing to {self.folder} ({error.strerror or error}): finished parts are kept, and "
                    "the same command resumes from them"
                ) from error

    def finish(self) -> None:
        """Record the request as finished, and remove the state for resuming."""
        files = {name: read_file_state(self.folder / name) for name in self._writes if (self.folder / name).is_file()}
        # The request itself contains paths of this machine, and the folder may be published.
        digest = _digest(read_json_object(self._request))
        write_json(self._done, {"request": digest, "files": files})
        self._tidy()

    def _begin(self, request: dict[str, object], *, force: bool) -> bool:
        """Prepare the folder for a request, unless the request is finished already.

        Returns:
            Whether the request is finished.
        """
        if self._done.is_file():
            if self._is_result_of(request):
                self._tidy()
                return True
            if not force:
                raise InputError(
                    f"{self.folder} holds the finished result of another request, or its files have changed: choose "
                    "another folder, or --force to replace them"
                )
        recorded = _read_object(self._request)
        if recorded is not None and recorded != request and not force and not self._failed.exists():
            raise InputError(
                f"{self.folder} holds the beginning of another request ({describe_differences(request, recorded)}): "
                "repeat the earlier command to complete it, choose another folder, or --force to replace its files"
            )
        if recorded != request or self._done.is_file() or force:
            self._claim(force=force)
            self._clear()
            write_json(self._request, request)
        self._failed.unlink(missing_ok=True)
        return False

    def _claim(self, *, force: bool) -> None:
        """Record the output files. Refuse unrecorded existing files, unless `force` is set."""
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
        return all(path.is_file() and read_file_state(path) == state for path, state in paths.items())

    def _clear(self) -> None:
        """Remove the output files of this request and of an earlier request. All other files stay."""
        finished = (_read_object(self._done) or {}).get("files")
        outputs = {*self._writes, *(str(name) for name in (finished if isinstance(finished, dict) else ()))}
        # Without an index, loaders read every safetensors file as a part of the model.
        weights = any(name.endswith(".safetensors") and "adapter_model" not in name for name in self._writes)
        for file in self.folder.glob("*.safetensors") if weights else ():
            if file.name not in outputs:
                raise InputError(f"{file} is not of this command, and loaders might read it: move it away first")
        for name in outputs:
            path = self.folder / name
            # A damaged record could name a file outside of the folder.
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
        # From now on, `done.json` identifies our files.
        Manifest(self.folder).remove()
        self._request.unlink(missing_ok=True)


def validate_finished(folder: Path) -> None:
    """Refuse the output folder of an unfinished command.

    Raises:
        InputError: The command was killed, or is running.
    """
    if (folder / OWN_NAME / "request.json").is_file():
        raise InputError(f"{folder} is not finished: the command that began it completes it when run again")


def read_file_state(file: Path) -> list[int]:
    """Return a file's size in bytes and modification time in ns, which reveal changes without reading the file."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_object(file: Path) -> dict[str, object] | None:
    try:
        return read_json_object(file)
    except InputError:
        return None


def _digest(request: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
