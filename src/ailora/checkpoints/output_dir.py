"""The folder that a command writes, and how the same command finds its place in it again after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ailora.atomic_io import write_text
from ailora.errors import InputError, ModelError


class Output:
    """A folder in the making: what is unfinished lies in `.ailora/`, and every finished file is whole.

    `.ailora/request.json` says what was asked for while it is being made; `.ailora/done.json`, written last, that it is
    made, by which request, and how large its files are.

    Attributes:
        folder: the folder.
        pieces: where finished parts of an adapter wait.
        shards: where shards grow.
    """

    def __init__(self, folder: Path | str) -> None:
        if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
            raise InputError(f"the folder to write is a path, not {folder!r}")
        self.folder = Path(folder).expanduser()
        self._own = self.folder / ".ailora"
        self.pieces = self._own / "pieces"
        self.shards = self._own / "shards"
        self._failed = self._own / "failed.txt"
        self._request = self._own / "request.json"
        self._done = self._own / "done.json"
        self._writes: list[str] = []

    @contextmanager
    def claimed(
        self, request: Mapping[str, Any], *, reads: Iterable[Path], writes: Iterable[str], force: bool
    ) -> Iterator[bool]:
        """Hold the folder for a request while the body runs; yields whether all of it is made already.

        Args:
            request: everything that decides the result, as plain data.
            reads: files that are read; the result may not be written to where they are.
            writes: names of the files that will be written, below the folder.
            force: remove files of these names, and what an earlier request wrote here.

        Raises:
            InputError: something that is read lies in the folder; it holds other files, the result of another request
                or of one that was changed since, or the beginning of another request (the keys that differ are named);
                another process writes to it; or writing fails while the body runs, for want of space or the like.
        """
        self._writes = sorted(writes)
        self._validate_inputs_outside(reads)
        try:
            self._own_folder(force=force)
            with FileLock(self._own / "lock", timeout=0):
                done = self._take(json.loads(json.dumps(request)), force=force)
                try:
                    yield done
                except (InputError, ModelError) as error:
                    # It will fail again: another request may have the folder.
                    write_text(self._failed, f"{error}\n")
                    raise
        except Timeout:
            raise InputError(f"another process is writing to {self.folder}") from None
        except OSError as error:
            raise InputError(
                f"cannot go on writing to {self.folder} ({error.strerror or error}): what is there is kept, and the "
                "same command goes on from it"
            ) from error

    def finish(self) -> None:
        """Say that everything is made, and drop what was kept to go on after a kill."""
        files = {name: identity(self.folder / name) for name in self._writes if (self.folder / name).is_file()}
        digest = _digest(json.loads(self._request.read_text(encoding="utf-8")))
        write_text(self._done, json.dumps({"request": digest, "files": files}, indent=2) + "\n")
        self._tidy()

    def _own_folder(self, *, force: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._own.is_symlink():
                raise InputError(f"{self._own} is a link: what it leads to is not written to")
            known = force or self._done.exists() or self._request.exists()
            if others := [] if known else sorted(p.name for p in self.folder.iterdir() if p != self._own):
                raise InputError(
                    f"{self.folder} is not empty and not made by this command (it holds {others[0]}): choose another "
                    "folder, or --force to write into it"
                )
            for part in (self.pieces, self.shards):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}") from None

    def _validate_inputs_outside(self, reads: Iterable[Path]) -> None:
        """Writing, and making room for it, may not touch what is read, also not where links lead."""
        homes = {self.folder.resolve(), *((self.folder / name).parent.resolve() for name in self._writes)}
        for file in reads:
            if homes & {file.parent.resolve(), file.resolve().parent}:
                raise InputError(f"{file} is read and lies in {self.folder}: choose another folder to write")

    def _take(self, request: dict[str, Any], *, force: bool) -> bool:
        if self._done.is_file():
            if self._made_of(request):
                self._tidy()
                return True
            if not force:
                raise InputError(
                    f"{self.folder} holds the finished result of another request, or it was changed since: choose "
                    "another folder, or --force to replace it"
                )
        started = _read(self._request)
        failed = self._failed.exists()
        if started is not None and started != request and not force and not failed:
            raise InputError(
                f"{self.folder} holds the beginning of another request ({_differences(started, request)}): repeat that "
                "one to complete it, choose another folder, or --force to replace it"
            )
        if started != request or self._done.is_file() or force:
            self._clear()
            write_text(self._request, json.dumps(request, indent=2) + "\n")
        self._failed.unlink(missing_ok=True)
        return False

    def _made_of(self, request: dict[str, Any]) -> bool:
        done = _read(self._done) or {}
        files = done.get("files")
        if done.get("request") != _digest(request) or not isinstance(files, dict):
            return False
        paths = {self.folder / name: then for name, then in files.items()}
        return all(path.is_file() and identity(path) == then for path, then in paths.items())

    def _clear(self) -> None:
        """Make room: only files that will be written, or that an earlier request of ours wrote, are removed."""
        earlier = _read(self._done) or {}
        ours = set(self._writes) | {str(name) for name in earlier.get("files", {})}
        weights = any(name.endswith(".safetensors") and "adapter_model" not in name for name in self._writes)
        for file in self.folder.glob("*.safetensors") if weights else ():
            if file.name not in ours:
                raise InputError(f"{file} is not of this command, and loaders might take it: move it away first")
        for name in ours:
            path = self.folder / name
            if path.resolve().is_relative_to(self.folder.resolve()) and path.is_file():
                path.unlink()
        for part in (self.pieces, self.shards):
            shutil.rmtree(part)
            part.mkdir()
        self._done.unlink(missing_ok=True)

    def _tidy(self) -> None:
        for part in (self.pieces, self.shards):
            shutil.rmtree(part, ignore_errors=True)
        self._failed.unlink(missing_ok=True)
        self._request.unlink(missing_ok=True)


def identity(file: Path) -> list[int]:
    """What tells two states of a file apart without reading it: bytes, and the time of the last change in ns."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = sorted(key for key in there.keys() | now.keys() if there.get(key) != now.get(key))
    return "; ".join(f"{key}: {_shown(there.get(key))} there, {_shown(now.get(key))} now" for key in keys)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
