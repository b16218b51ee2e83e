"""The folder of a run: what it holds, and how a run finds its place again after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ailora.atomic_io import write_text
from ailora.errors import InputError
from ailora.plan import METADATA_NAME
from ailora.recipes.config.loader import load_config, to_yaml
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.processes import is_main, wait
from ailora.recipes.training import trainer_checkpoints

#: What every `result.json` holds, whatever the run.
_RESULT_KEYS = {"metrics", "best"}


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

    def claim(self, config: RunConfig) -> None:
        """Make the folder this run's, or recognise it as such. Of several processes, the main one does it.

        Raises:
            InputError: it holds another run's configuration (the keys that differ are named), or other files.
        """
        if is_main():
            self._claim(config)
        wait()

    def _claim(self, config: RunConfig) -> None:
        try:
            if self._abandoned():
                self._take_over(config)
            elif self.config.exists():
                self._recognise(config)
                self.failed.unlink(missing_ok=True)
            else:
                self._take(config)
        except OSError as error:
            raise InputError(f"cannot write to the output {self.path}: {error.strerror}") from None

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
            result = json.loads(self.result.read_text(encoding="utf-8"))
            if not (isinstance(result, dict) and result.keys() >= _RESULT_KEYS):
                raise ValueError(f"expected an object with {', '.join(sorted(_RESULT_KEYS))}")
        except ValueError as error:
            raise InputError(f"{self.result} is damaged ({error}): {self.rewriting}") from None
        return result

    def finished(self, config: RunConfig) -> dict[str, Any] | None:
        """The result of a run that has finished here; None: it has not.

        Raises:
            InputError: it was another run, or its result cannot be read.
        """
        if not self.result.exists():
            return None
        self.claim(config)
        return self.read_result()

    @property
    def rewriting(self) -> str:
        """How what a finished run wrote at its end is written again."""
        return f"delete {self.result} and run `ailora train {self.config}` to write it anew from the last checkpoint"

    def newest_checkpoint(self) -> Path | None:
        """As `trainer_checkpoints.newest_checkpoint`."""
        return trainer_checkpoints.newest_checkpoint(self.checkpoints)

    def mark_complete(self, step: int, train_seconds: float) -> None:
        """Say that the checkpoint of a step is written to its end."""
        trainer_checkpoints.mark_complete(self.checkpoints / f"checkpoint-{step}", train_seconds)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What trains in the claimed folder; an error before the first checkpoint is noted in `failed.txt`."""
        try:
            yield
        except BaseException as error:
            if is_main() and not self._holds_work():
                with suppress(OSError):
                    write_text(self.failed, f"ended before the first checkpoint: {type(error).__name__}: {error}\n")
            raise

    def write_folder(self, target: Path, write: Callable[[Path], object]) -> None:
        """Write a folder so that it is there whole or not at all. All processes take part in the writing."""
        partial = target.with_name(f".{target.name}.partial")
        for leftover in (partial, target):
            if is_main() and leftover.exists():
                shutil.rmtree(leftover)
        wait()
        write(partial)
        wait()
        if is_main():
            partial.rename(target)

    def _holds_work(self) -> bool:
        """Whether anything is here that a new start would lose."""
        return bool(trainer_checkpoints.complete_checkpoints(self.checkpoints)) or any(
            made.exists() for made in (self.adapter, self.model, self.result)
        )

    def _abandoned(self) -> bool:
        return self.config.is_file() and self.failed.is_file() and not self._holds_work()

    def _take(self, config: RunConfig) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise InputError(f"{self.path} holds files but no run: choose another output")
        write_text(self.config, to_yaml(config))

    def _take_over(self, config: RunConfig) -> None:
        # Full fine-tuning would leave the sidecar of the adapter that was here.
        (self.path / METADATA_NAME).unlink(missing_ok=True)
        write_text(self.config, to_yaml(config))
        self.failed.unlink()

    def _recognise(self, config: RunConfig) -> None:
        if changes := differences(config.model_dump(), self.read_config().model_dump()):
            raise InputError(f"{self.path} holds another run ({changes}): choose another output or remove it")


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Which dotted keys of plain data differ, what they are there and now; empty: none."""
    now, there = _flat(ours), _flat(theirs)
    different = [key for key in sorted(now.keys() | there.keys()) if now.get(key) != there.get(key)]
    return "; ".join(f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in different)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{prefix}.{key}" if prefix else str(key)).items()}
