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

from ailora.errors import InputError
from ailora.shards import write_text

#: What a command of ours writes into a folder; with `force` such files make room for new ones, and no others.
_OURS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "ailora.json")


class Output:
    """A folder in the making: what is unfinished lies in `.ailora/`, and every finished file is whole.

    `.ailora/request.json` says what was asked for while it is being made; `.ailora/done.json`, written last, that it is
    made, by which request, and how large its files are.

    Attributes:
        folder: the folder.
        pieces: where unfinished parts go.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._own = self.folder / ".ailora"
        self.pieces = self._own / "pieces"
        self._request = self._own / "request.json"
        self._done = self._own / "done.json"

    @contextmanager
    def claimed(self, request: Mapping[str, Any], *, sources: Iterable[Path], force: bool) -> Iterator[bool]:
        """Hold the folder for a request while the body runs; yields whether all of it is made already.

        Args:
            request: everything that decides the result, as plain data.
            sources: folders that are read, which the result may not be written into.
            force: remove what another command of ours, or someone else, has written under the names that we use.

        Raises:
            InputError: the folder is one of the sources, holds other files, the result of another request or of one
                that was changed since, or the beginning of another request (the keys that differ are named); another
                process writes to it; or writing fails while the body runs, for want of space or the like.
        """
        for source in sources:
            if self.folder.resolve() == source.resolve():
                raise InputError(f"{self.folder} is what is read: choose another folder to write")
        try:
            self._own_folder(force=force)
            with FileLock(self._own / "lock", timeout=0):
                done = self._take(json.loads(json.dumps(request)), force=force)
                yield done
        except Timeout:
            raise InputError(f"another process is writing to {self.folder}") from None
        except OSError as error:
            raise InputError(
                f"cannot go on writing to {self.folder} ({error.strerror or error}): what is there is kept, and the "
                "same command goes on from it"
            ) from error

    def finish(self) -> None:
        """Say that everything is made, and drop what was kept to go on after a kill."""
        files = {file.name: file.stat().st_size for file in sorted(self.folder.iterdir()) if file.is_file()}
        digest = _digest(json.loads(self._request.read_text(encoding="utf-8")))
        write_text(self._done, json.dumps({"request": digest, "files": files}, indent=2) + "\n")
        self._tidy()

    def _own_folder(self, *, force: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = force or self._done.exists() or self._request.exists()
            if others := [] if known else sorted(p.name for p in self.folder.iterdir() if p != self._own):
                raise InputError(
                    f"{self.folder} is not empty and not made by this command (it holds {others[0]}): choose another "
                    "folder, or --force to write into it"
                )
            self.pieces.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}") from None

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
        if started is not None and started != request and not force:
            raise InputError(
                f"{self.folder} holds the beginning of another request ({_differences(started, request)}): repeat that "
                "one to complete it, choose another folder, or --force to replace it"
            )
        if started != request or self._done.is_file():
            self._clear()
            write_text(self._request, json.dumps(request, indent=2) + "\n")
        return False

    def _made_of(self, request: dict[str, Any]) -> bool:
        done = _read(self._done) or {}
        files = done.get("files")
        if done.get("request") != _digest(request) or not isinstance(files, dict):
            return False
        paths = {self.folder / name: size for name, size in files.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def _clear(self) -> None:
        """Make room: only files under the names that commands of ours write are removed."""
        self._done.unlink(missing_ok=True)
        shutil.rmtree(self.pieces)
        self.pieces.mkdir()
        for pattern in _OURS:
            for file in self.folder.glob(pattern):
                file.unlink()

    def _tidy(self) -> None:
        shutil.rmtree(self.pieces, ignore_errors=True)
        self._request.unlink(missing_ok=True)


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
