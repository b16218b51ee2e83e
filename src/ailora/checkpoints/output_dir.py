"""Output folders of commands: resume interrupted commands, and record finished ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from ailora.atomic_io import write_json, write_reason
from ailora.checkpoints.folder_lock import STATE_DIR_NAME, lock_folder, read_state_file
from ailora.checkpoints.manifest import Manifest
from ailora.checkpoints.output_path import resolve_output_path, validate_inputs_outside, validate_no_links
from ailora.checkpoints.request import describe_differences, digest_request, read_file_state
from ailora.errors import InputError, ModelError
from ailora.plain_data import read_json_object


class OutputDir:
    """Output folder from which an interrupted command resumes.

    Only files in the subfolder `.ailora/` may be incomplete. `.ailora/request.json` holds the request until the command
    finishes. `.ailora/done.json` is written last. It holds a digest of the request, and the size and the modification
    time of every output file.

    Attributes:
        folder: Path of the folder.
        parts: Subfolder for finished parts of an adapter.
        shards: Subfolder for unfinished shards.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = resolve_output_path(folder)
        state_dir = self.folder / STATE_DIR_NAME
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
            request: Inputs of the command, as plain data.
            reads: Input files, which must not be in the folder.
            writes: Paths of the output files, relative to the folder.
            force: Whether to remove existing files in `writes`, and the results of a different request.

        Yields:
            Whether the request is already finished.

        Raises:
            InputError: The folder contains inputs, links, unexpected files, or results of a different request (the
                message names the differing keys); another process has locked the folder; or writing fails.
        """
        self._writes = sorted(writes)
        validate_inputs_outside(self.folder, reads, self._writes)
        marks = [str(mark.relative_to(self.folder)) for mark in (self._request, self._done)]
        with lock_folder(self.folder, content="output of this command", marks=marks, force=force):
            try:
                state_dirs = [f"{STATE_DIR_NAME}/{folder.name}" for folder in (self.parts, self.shards)]
                validate_no_links(self.folder, [*self._writes, *state_dirs])
                for folder in (self.parts, self.shards):
                    folder.mkdir(exist_ok=True)
                # The round trip through JSON turns tuples into lists, so the request can equal a recorded request.
                done = self._begin(json.loads(json.dumps(request)), force=force)
                try:
                    yield done
                except (InputError, ModelError) as error:
                    # The same request would fail again. `failed.txt` lets a different request take over the folder.
                    write_reason(self._failed, str(error))
                    raise
            except OSError as error:
                raise InputError(
                    f"cannot continue writing to {self.folder} ({error.strerror or error}): finished parts are kept, "
                    "and the same command resumes from them"
                ) from error

    def finish(self) -> None:
        """Record the request as finished, and remove the state for resuming."""
        files = {name: read_file_state(self.folder / name) for name in self._writes if (self.folder / name).is_file()}
        # Record only a digest: the request contains paths of this machine, and users may publish the folder.
        digest = digest_request(read_json_object(self._request))
        write_json(self._done, {"request": digest, "files": files})
        self._tidy()

    def _begin(self, request: dict[str, object], *, force: bool) -> bool:
        """Prepare the folder for a request, and return whether the request is already finished."""
        if self._done.is_file():
            if self._is_result_of(request):
                self._tidy()
                return True
            if not force:
                raise InputError(
                    f"{self.folder} holds the finished result of a command with different inputs or options, or its "
                    "files have changed since: choose another folder, or use --force to replace them"
                )
        recorded = read_state_file(self._request)
        if recorded is not None and recorded != request and not force and not self._failed.exists():
            raise InputError(
                f"{self.folder} holds unfinished output of a command with different inputs or options "
                f"({describe_differences(request, recorded)}): repeat the earlier command to complete the output, "
                "choose another folder, or use --force to replace the files"
            )
        if recorded != request or self._done.is_file() or force:
            self._claim(force=force)
            self._clear()
            write_json(self._request, request)
        self._failed.unlink(missing_ok=True)
        return False

    def _claim(self, *, force: bool) -> None:
        """Record the output files. Without `force`, refuse unrecorded files that exist."""
        manifest = Manifest(self.folder)
        if force:
            manifest.adopt(*self._writes)
        else:
            manifest.claim(*self._writes)

    def _is_result_of(self, request: Mapping[str, object]) -> bool:
        done = read_state_file(self._done) or {}
        files = done.get("files")
        if done.get("request") != digest_request(request) or not isinstance(files, dict):
            return False
        paths = {self.folder / name: state for name, state in files.items()}
        return all(path.is_file() and read_file_state(path) == state for path, state in paths.items())

    def _clear(self) -> None:
        """Remove the output files of this request and of the finished request. All other files stay.

        Raises:
            InputError: The request writes a model, and the folder holds an additional safetensors file.
        """
        finished_files = (read_state_file(self._done) or {}).get("files")
        outputs = {*self._writes, *(finished_files if isinstance(finished_files, dict) else ())}
        # Without an index, loaders read every safetensors file as a part of the model.
        writes_model = any(name.endswith(".safetensors") and "adapter_model" not in name for name in self._writes)
        for file in self.folder.glob("*.safetensors") if writes_model else ():
            if file.name not in outputs:
                raise InputError(
                    f"{file} was not written by this command, and loaders might read it as a part of the model: move "
                    "it away"
                )
        for name in outputs:
            path = self.folder / name
            # A damaged record could name a file outside the folder.
            if path.resolve().is_relative_to(self.folder.resolve()) and path.is_file():
                path.unlink()
        for folder in (self.parts, self.shards):
            shutil.rmtree(folder)
            folder.mkdir()
        self._done.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove all state except `done.json`."""
        for folder in (self.parts, self.shards):
            shutil.rmtree(folder, ignore_errors=True)
        self._failed.unlink(missing_ok=True)
        # `done.json` records our files from now on, so the manifest is no longer needed.
        Manifest(self.folder).remove()
        self._request.unlink(missing_ok=True)


def validate_finished(folder: Path) -> None:
    """Refuse the output folder of an unfinished command.

    Raises:
        InputError: The command was killed, or is running.
    """
    if (folder / STATE_DIR_NAME / "request.json").is_file():
        raise InputError(f"{folder} is not finished: repeat the command that began it")
