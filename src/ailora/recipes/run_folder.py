"""Folder of a run: paths, claims and resumption."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from ailora.atomic_io import replacing_folder, restore_non_finite, write_reason, write_text
from ailora.checkpoints.folder_lock import lock_folder, validate_content
from ailora.checkpoints.manifest import Manifest
from ailora.checkpoints.output_path import explain_failed_write, validate_no_links, writing
from ailora.checkpoints.request import describe_differences
from ailora.distributed import on_main, wait_for_everyone
from ailora.errors import InputError
from ailora.formatting import quote_argument, shorten
from ailora.path_kind import is_file
from ailora.plain_data import read_json_object
from ailora.plan import METADATA_NAME
from ailora.recipes.config.loader import load_config, to_yaml
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training import trainer_checkpoints

#: Keys of every `result.json`.
_RESULT_KEYS = {"metrics", "best"}
#: Keys of `result.json` whose values contain numbers; the file stores non-finite numbers as strings.
_NUMERIC_KEYS = ("metrics", "best", "history", "forgetting")
#: Time to wait for the lock of a killed run, which is held until the last child process of the run has ended, for
#: example a worker of the data loader.
_LOCK_TIMEOUT_S = 10.0


class RunFolder:
    """Paths in the folder of a run, with methods to claim the folder and to read and write its files.

    A run writes `config.yaml`, `ailora.json` (metadata of the adapter), `checkpoints/` and `log.jsonl`. After training,
    the run writes `adapter/` or `model/`, then `predictions.parquet` or `samples.jsonl`, and finally `result.json`.
    `.initial/` holds the initial factors if the init subtracts them from the base weights. `failed.txt` marks a failure
    before the first checkpoint; a different run may take over such a folder. `ailora tune` adds `tune.json`.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.predictions = self.path / "predictions.parquet"
        self.samples = self.path / "samples.jsonl"
        self.result = self.path / "result.json"
        self.search = self.path / "tune.json"
        self.failed = self.path / "failed.txt"
        self.initial = self.path / ".initial"

    @contextmanager
    def claimed(self, config: RunConfig) -> Generator[None, None, None]:
        """Lock the folder for a run during training.

        All processes of the run enter the context, but only the main process takes the lock. If an error ends the run
        before its first checkpoint, `failed.txt` is written.

        Args:
            config: Configuration of the run.

        Raises:
            InputError: The folder holds a different run (the message names the keys that differ) or unrelated files, or
                a different process is training in the folder.
        """
        with on_main(self._locked(config)):
            yield

    @contextmanager
    def _locked(self, config: RunConfig) -> Generator[None, None, None]:
        with lock_folder(self.path, content="run", marks=[self.config.name], timeout_s=_LOCK_TIMEOUT_S):
            with writing(self.path):
                self._begin(config)
            try:
                yield
            except BaseException as error:
                if not self._holds_work():
                    with suppress(OSError, InputError):
                        self.claim(self.failed)
                        reason = f"ended before the first checkpoint: {type(error).__name__}: {error}"
                        write_reason(self.failed, reason)
                if reason := explain_failed_write(error, self.path):
                    raise InputError(
                        f"cannot continue writing to {self.path} ({reason}); complete files are kept, and the same "
                        "command resumes from the last checkpoint"
                    ) from error
                raise

    def validate_claimable(self, config: RunConfig) -> None:
        """Check, without writing, that `claimed` would accept the folder.

        Raises:
            InputError: `claimed` would refuse the folder, or the folder cannot be created or written to.
        """
        try:
            existing = next(path for path in (self.path, *self.path.parents) if os.path.lexists(path))
            if not existing.is_dir():
                raise InputError(f"cannot write to {self.path}: {existing} is not a folder")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise InputError(f"cannot write to {self.path}: no permission to write to {existing}")
            if existing == self.path:
                validate_content(self.path, content="run", marks=[self.config.name])
                self._validate_outputs(config, Manifest(self.path))
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror or error}") from None

    def _validate_outputs(self, config: RunConfig, manifest: Manifest) -> None:
        """Validate the folder as `_begin` does, without writing."""
        if not self.config.exists() or self._has_failed_early(manifest):
            manifest.validate(self.config.name, *self._outputs)
        else:
            self._validate_same_run(config)
            if self._lacks_manifest(manifest):
                # `_begin` adopts the outputs of such a run, and then refuses only links.
                validate_no_links(self.path, self._outputs)
            else:
                manifest.validate(*self._outputs)
        self._validate_checkpoints(manifest)

    def _begin(self, config: RunConfig) -> None:
        """Claim a new folder for this run, or validate that the folder belongs to this run."""
        manifest = Manifest(self.path)
        if not self.config.exists() or self._has_failed_early(manifest):
            manifest.validate(*self._outputs)
            manifest.claim(self.config.name)
            # Full fine-tuning writes no `ailora.json`, so the file of an earlier adapter would remain.
            (self.path / METADATA_NAME).unlink(missing_ok=True)
            write_text(self.config, to_yaml(config))
        else:
            self._validate_same_run(config)
            if self._lacks_manifest(manifest):
                manifest.adopt(self.config.name, *self._outputs)
            manifest.validate(*self._outputs)
        self._validate_checkpoints(manifest)
        # The trainer itself creates the folder `checkpoints`, and writes only checkpoints there.
        manifest.adopt(self.checkpoints.name)
        self.failed.unlink(missing_ok=True)

    def _lacks_manifest(self, manifest: Manifest) -> bool:
        """Return whether the folder's run was begun by a version of ailora without manifests."""
        return manifest.is_new and self._holds_checkpoints()

    def _has_failed_early(self, manifest: Manifest) -> bool:
        """Return whether the folder's run failed before its first checkpoint."""
        wrote_both = self.config.name in manifest and self.failed.name in manifest
        return wrote_both and self.failed.is_file() and not self._holds_work()

    def _validate_checkpoints(self, manifest: Manifest) -> None:
        """Refuse links among the checkpoints, and incomplete checkpoints that do not belong to this run.

        Raises:
            InputError: A checkpoint is a link, or is incomplete and without an entry in the manifest.
        """
        # The trainer overwrites and deletes checkpoints by name, without knowing which run has written them.
        checkpoints = trainer_checkpoints.list_checkpoints(self.checkpoints)
        validate_no_links(self.checkpoints, (checkpoint.name for checkpoint in checkpoints))
        for checkpoint in checkpoints:
            if not trainer_checkpoints.is_complete(checkpoint) and self._to_key(checkpoint) not in manifest:
                raise InputError(
                    f"{checkpoint} was not written by this run, or is an incomplete checkpoint of an earlier version; "
                    "move the checkpoint, or choose a different output"
                )

    def _to_key(self, path: Path) -> str:
        """Return the name of a path in the manifest."""
        return path.relative_to(self.path).as_posix()

    @property
    def _outputs(self) -> tuple[str, ...]:
        """Names in the manifest of all files and folders that a run may write, except `config.yaml`."""
        results = (self.adapter, self.model, self.predictions, self.samples, self.result)
        return METADATA_NAME, *map(self._to_key, (self.checkpoints, self.log, *results, self.failed, self.initial))

    def _validate_same_run(self, config: RunConfig) -> None:
        if differences := describe_differences(config.model_dump(), self.read_config().model_dump()):
            raise InputError(
                f"{self.path} holds another run ({differences}): choose a different output, or remove the folder"
            )

    def read_config(self) -> RunConfig:
        """Read the configuration of the run.

        Raises:
            InputError: The folder holds no run, or the configuration is invalid.
        """
        if not is_file(self.config):
            raise InputError(f"{self.path} is not the folder of a run: config.yaml is missing")
        return load_config(self.config, to_run=False)

    def read_result(self) -> dict[str, Any]:
        """Read the result of a finished run.

        Returns:
            Content of `result.json`.

        Raises:
            InputError: The run has not finished, or its result is damaged.
        """
        if not self.result.is_file():
            raise InputError(
                f"{self.path} has no result.json, so the run has not finished; repeat the command to resume"
            )
        try:
            result = read_json_object(self.result, allow_nan=True)
            if not result.keys() >= _RESULT_KEYS:
                raise InputError(f"expected an object with the keys {', '.join(sorted(_RESULT_KEYS))}")
        except InputError as error:
            raise InputError(f"{self.result} is damaged ({error}): {self.rewrite_hint}") from None
        return result | {key: restore_non_finite(result[key]) for key in _NUMERIC_KEYS if key in result}

    def read_finished_result(self, config: RunConfig) -> dict[str, Any] | None:
        """Return the result if the run has finished, else None.

        Raises:
            InputError: The folder holds a different run, or the result is damaged.
        """
        if not self.result.exists():
            return None
        self._validate_same_run(config)
        return self.read_result()

    def read_predictions(self, columns: Sequence[str]) -> pd.DataFrame | None:
        """Read columns of `predictions.parquet`.

        Args:
            columns: Names of columns. `Predictions.to_frame` describes them; `split` names the split of each row.

        Returns:
            The columns, or None if the run has not written predictions.

        Raises:
            InputError: The file is damaged or lacks a column.
        """
        if not self.predictions.is_file():
            return None
        try:
            return pd.read_parquet(self.predictions, columns=list(columns))
        except (OSError, ValueError, KeyError) as error:
            reason = shorten(" ".join(str(error).split()), 200)
            raise InputError(f"{self.predictions} cannot be read: {reason}") from None

    @property
    def rewrite_hint(self) -> str:
        """Instruction for rewriting damaged files of a finished run."""
        command = f"ailora train {quote_argument(self.config)}"
        return f"delete {self.result} and run `{command}` to rewrite the file from the last checkpoint"

    def find_newest_checkpoint(self) -> Path | None:
        """Find the newest complete checkpoint, and remove newer incomplete checkpoints of this run.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            InputError: A file of the checkpoint is missing or damaged.
        """
        manifest = Manifest(self.path)
        return trainer_checkpoints.find_newest_checkpoint(
            self.checkpoints, is_of_run=lambda checkpoint: self._to_key(checkpoint) in manifest
        )

    def claim(self, *paths: Path) -> None:
        """Record files or folders of the run in the manifest, before they are written.

        Raises:
            InputError: A path is a link, or exists without an entry in the manifest.
        """
        Manifest(self.path).claim(*map(self._to_key, paths))

    def begin_checkpoint(self, step: int, *, rotates: bool) -> None:
        """Record a checkpoint in the manifest, before the trainer writes the checkpoint.

        Args:
            step: Step of the checkpoint.
            rotates: Whether the trainer deletes older checkpoints.

        Raises:
            InputError: The folder contains a checkpoint that this run has not written.
        """
        # If the run is killed, the manifest shows which incomplete checkpoints belong to this run.
        self.claim(self.checkpoints / f"checkpoint-{step}")
        if rotates:
            self._validate_checkpoints(Manifest(self.path))

    def mark_complete(self, step: int, train_seconds: float) -> None:
        """Mark the checkpoint of a step as complete; see `trainer_checkpoints.mark_complete`."""
        trainer_checkpoints.mark_complete(self.checkpoints / f"checkpoint-{step}", train_seconds)

    def write_folder(self, target: Path, write: Callable[[Path], object]) -> None:
        """Replace a folder of the run atomically. All processes must call this function together.

        Args:
            target: Folder to replace.
            write: Function that writes the content into a temporary folder, given as its argument.
        """
        with on_main(self._replacing(target)) as temporary:
            write(temporary)
            wait_for_everyone()

    def copy_training_state(self, source: RunFolder, config: RunConfig) -> None:
        """Claim this folder for a run, and copy the training state from the folder in which the run began.

        Args:
            source: Folder in which the run began; not modified.
            config: Configuration of the run, with this folder as its output.

        Raises:
            InputError: See `claimed`.
        """
        with self.claimed(config):
            if source.initial.is_dir():
                self._copy_folder(source.initial, self.initial)
            if source.log.is_file():
                self.claim(self.log)
                write_text(self.log, source.log.read_text(encoding="utf-8"))
            # Copy from the oldest to the newest, in the order in which training wrote the checkpoints.
            for checkpoint in reversed(trainer_checkpoints.list_complete_checkpoints(source.checkpoints)):
                target = self.checkpoints / checkpoint.name
                if not trainer_checkpoints.is_complete(target):
                    self._copy_folder(checkpoint, target)

    def _copy_folder(self, source: Path, target: Path) -> None:
        self.write_folder(target, lambda temporary: shutil.copytree(source, temporary, dirs_exist_ok=True))

    @contextmanager
    def _replacing(self, target: Path) -> Generator[Path, None, None]:
        self.claim(target)
        with replacing_folder(target) as temporary:
            yield temporary

    def _holds_work(self) -> bool:
        """Return whether the folder holds results of training."""
        return self._holds_checkpoints() or any(path.exists() for path in (self.adapter, self.model, self.result))

    def _holds_checkpoints(self) -> bool:
        return bool(trainer_checkpoints.list_complete_checkpoints(self.checkpoints))
