"""The folder of a run: what it holds, and how a run finds its place again after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ailora.atomic_io import replacing_folder, restore_non_finite, write_text
from ailora.checkpoints.output_dir import (
    Manifest,
    describe_differences,
    lock_folder,
    validate_no_links,
    write_failure,
    writing,
)
from ailora.distributed import on_main, wait_for_everyone
from ailora.errors import InputError
from ailora.formatting import quote_argument
from ailora.plain_data import read_json_object
from ailora.plan import METADATA_NAME
from ailora.recipes.config.loader import load_config, to_yaml
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training import trainer_checkpoints

#: What every `result.json` holds, whatever the run.
_RESULT_KEYS = {"metrics", "best"}
#: What holds numbers alone there.
_MEASURED = ("metrics", "best", "history", "forgetting")
#: A killed run lets go of its folder when its last process has ended.
_LOCK_TIMEOUT_S = 10.0


class RunFolder:
    """Paths and states of one run's folder.

    `config.yaml` (what runs), `ailora.json` (what the adapter is), `checkpoints/`, `log.jsonl`, and, written when the
    run ends, `adapter/` or `model/`, `predictions.parquet` or `samples.jsonl` and, last, `result.json`. `failed.txt`
    says that an error ended the run before its first checkpoint: nothing would be lost if another run took the folder.
    `.initial/` holds the start of an adapter that was taken out of the base weights.
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
        self.failed = self.path / "failed.txt"
        self.initial = self.path / ".initial"

    @contextmanager
    def claimed(self, config: RunConfig) -> Iterator[None]:
        """Hold the folder for a run while it trains; an error before the first checkpoint is noted in `failed.txt`.

        All processes of the run enter; the main one claims the folder.

        Raises:
            InputError: It holds another run's configuration (the keys that differ are named), or other files, or
                another process trains in it.
        """
        with on_main(self._locked(config)):
            yield

    @contextmanager
    def _locked(self, config: RunConfig) -> Iterator[None]:
        with lock_folder(self.path, content="run", marks=[self.config.name], timeout_s=_LOCK_TIMEOUT_S):
            with writing(self.path):
                self._begin(config)
            try:
                yield
            except BaseException as error:
                if not self._holds_work():
                    with suppress(OSError, InputError):
                        self.claim(self.failed)
                        write_text(self.failed, f"ended before the first checkpoint: {type(error).__name__}: {error}\n")
                if reason := write_failure(error, self.path):
                    raise InputError(
                        f"cannot go on writing to {self.path} ({reason}): what is complete is kept, and the same "
                        "command goes on from the last checkpoint"
                    ) from error
                raise

    def _begin(self, config: RunConfig) -> None:
        """Make the folder this run's, or recognize it as such: what lies there and is not ours is refused."""
        manifest = Manifest(self.path)
        if not self.config.exists() or self._was_given_up(manifest):
            manifest.validate(*self._outputs)
            manifest.claim(self.config.name)
            # Full fine-tuning would leave the metadata of an adapter that was here.
            (self.path / METADATA_NAME).unlink(missing_ok=True)
            write_text(self.config, to_yaml(config))
        else:
            self._validate_same_run(config)
            if manifest.is_new and self._holds_checkpoints():
                # A run of a version without a manifest.
                manifest.adopt(self.config.name, *self._outputs)
            manifest.validate(*self._outputs)
        self._validate_checkpoints(manifest)
        # Made by the trainer itself, which writes nothing else into it.
        manifest.adopt(self.checkpoints.name)
        self.failed.unlink(missing_ok=True)

    def _was_given_up(self, manifest: Manifest) -> bool:
        """Whether an error ended the run that was here before anything was worth keeping."""
        ours = self.config.name in manifest and self.failed.name in manifest
        return ours and self.failed.is_file() and not self._holds_work()

    def _validate_checkpoints(self, manifest: Manifest) -> None:
        """Refuse checkpoints of another trainer: ours would replace and rotate them away.

        Raises:
            InputError: Names one that is a link, or neither complete nor begun by this run.
        """
        checkpoints = trainer_checkpoints.numbered_checkpoints(self.checkpoints)
        validate_no_links(self.checkpoints, (checkpoint.name for checkpoint in checkpoints))
        for checkpoint in checkpoints:
            if not trainer_checkpoints.is_complete(checkpoint) and self._name(checkpoint) not in manifest:
                raise InputError(
                    f"{checkpoint} was not written by this run, or only begun by an earlier version: move it away, or "
                    "choose another output"
                )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    @property
    def _outputs(self) -> tuple[str, ...]:
        results = (self.adapter, self.model, self.predictions, self.samples, self.result)
        return METADATA_NAME, *map(self._name, (self.checkpoints, self.log, *results, self.failed, self.initial))

    def _validate_same_run(self, config: RunConfig) -> None:
        if changes := describe_differences(config.model_dump(), self.read_config().model_dump()):
            raise InputError(f"{self.path} holds another run ({changes}): choose another output or remove it")

    def read_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            InputError: the folder holds no run.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path} is not the folder of a run: it has no config.yaml")
        return load_config(self.config, to_run=False)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run.

        Raises:
            InputError: the run has not finished, or its result cannot be read.
        """
        if not self.result.is_file():
            raise InputError(f"{self.path} has no result.json: the run has not finished; run it again to continue it")
        try:
            result = read_json_object(self.result, allow_nan=True)
            if not result.keys() >= _RESULT_KEYS:
                raise InputError(f"expected an object with {', '.join(sorted(_RESULT_KEYS))}")
        except InputError as error:
            raise InputError(f"{self.result} is damaged ({error}): {self.rewriting}") from None
        return result | {key: restore_non_finite(result[key]) for key in _MEASURED if key in result}

    def finished(self, config: RunConfig) -> dict[str, Any] | None:
        """The result of a run that has finished here; None: it has not.

        Raises:
            InputError: it was another run, or its result cannot be read.
        """
        if not self.result.exists():
            return None
        self._validate_same_run(config)
        return self.read_result()

    @property
    def rewriting(self) -> str:
        """How what a finished run wrote at its end is written again."""
        command = f"ailora train {quote_argument(self.config)}"
        return f"delete {self.result} and run `{command}` to write it anew from the last checkpoint"

    def newest_checkpoint(self) -> Path | None:
        """Find the newest checkpoint that was written to its end. Newer ones that this run only began are removed.

        Raises:
            InputError: A file of it is missing or damaged.
        """
        manifest = Manifest(self.path)
        return trainer_checkpoints.newest_checkpoint(
            self.checkpoints, is_ours=lambda checkpoint: self._name(checkpoint) in manifest
        )

    def claim(self, *paths: Path) -> None:
        """Note on the main process what it writes next.

        Raises:
            InputError: A link lies there, or something that this run has not written.
        """
        Manifest(self.path).claim(*map(self._name, paths))

    def begin_checkpoint(self, step: int, *, rotates: bool) -> None:
        """Note that the checkpoint of a step is written next: the next attempt removes it where a kill cuts it short.

        Args:
            step: The step.
            rotates: Whether the trainer deletes older checkpoints.

        Raises:
            InputError: Another trainer has written one here meanwhile, which ours would replace or delete.
        """
        self.claim(self.checkpoints / f"checkpoint-{step}")
        if rotates:
            self._validate_checkpoints(Manifest(self.path))

    def mark_complete(self, step: int, train_seconds: float) -> None:
        """Say that the checkpoint of a step is written to its end."""
        trainer_checkpoints.mark_complete(self.checkpoints / f"checkpoint-{step}", train_seconds)

    def write_folder(self, target: Path, write: Callable[[Path], object]) -> None:
        """Replace a folder atomically. All processes take part in the writing."""
        with on_main(self._replacing(target)) as partial:
            write(partial)
            wait_for_everyone()

    @contextmanager
    def _replacing(self, target: Path) -> Iterator[Path]:
        self.claim(target)
        with replacing_folder(target) as partial:
            yield partial

    def _holds_work(self) -> bool:
        """Whether anything is here that a new start would lose."""
        return self._holds_checkpoints() or any(made.exists() for made in (self.adapter, self.model, self.result))

    def _holds_checkpoints(self) -> bool:
        return bool(trainer_checkpoints.complete_checkpoints(self.checkpoints))
