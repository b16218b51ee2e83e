"""The folder of a run: what it holds, and how a run finds its place again after a kill."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ailora.adapters.sidecar import write_text
from ailora.errors import InputError
from ailora.recipes.config import load_config, to_yaml
from ailora.recipes.schema import ClassificationConfig

_COMPLETE = "complete.json"


class RunFolder:
    """Paths and states of one run's folder.

    `config.yaml` (what runs), `ailora.json` (what the adapter is), `checkpoints/`, `log.jsonl`, and, written when the
    run ends, `adapter/` or `model/`, `predictions.parquet` and, last, `result.json`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.predictions = self.path / "predictions.parquet"
        self.result = self.path / "result.json"

    def claim(self, config: ClassificationConfig) -> None:
        """Make the folder this run's, or recognise it as such.

        Raises:
            InputError: it holds another run's configuration (the keys that differ are named), or other files.
        """
        if self.config.exists():
            ours, theirs = _flat(config.model_dump()), _flat(self.read_config().model_dump())
            different = [k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k)]
            if different:
                changes = "; ".join(f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} now" for k in different)
                raise InputError(f"{self.path} holds another run ({changes}): choose another output or remove it")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise InputError(f"{self.path} holds files but no run: choose another output")
            write_text(self.config, to_yaml(config))
        except OSError as error:
            raise InputError(f"cannot write to the output {self.path}: {error.strerror}") from None

    def read_config(self) -> ClassificationConfig:
        """The run's configuration.

        Raises:
            InputError: the folder holds no run.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path} is not the folder of a run: it has no config.yaml")
        return load_config(self.config)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run.

        Raises:
            InputError: the run has not finished, or its result cannot be read.
        """
        if not self.result.is_file():
            raise InputError(f"{self.path} has no result.json: the run has not finished; run it again to continue it")
        try:
            return json.loads(self.result.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{self.result} is damaged: {error}") from None

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end; newer, half-written ones are removed."""
        named = [re.fullmatch(r"checkpoint-(\d+)", path.name) for path in self.checkpoints.glob("checkpoint-*")]
        found = {int(match[1]): self.checkpoints / match[0] for match in named if match}
        for _, checkpoint in sorted(found.items(), reverse=True):
            if (checkpoint / _COMPLETE).is_file():
                return checkpoint
            shutil.rmtree(checkpoint)
        return None

    def mark_complete(self, step: int, train_seconds: float) -> None:
        """Say that the checkpoint of a step is written to its end."""
        write_text(self.checkpoints / f"checkpoint-{step}" / _COMPLETE, json.dumps({"train_seconds": train_seconds}))

    def train_seconds(self, checkpoint: Path | None) -> float:
        """Seconds that were trained until a checkpoint, by all processes of the run."""
        return json.loads((checkpoint / _COMPLETE).read_text())["train_seconds"] if checkpoint else 0.0

    def write_folder(self, target: Path, write: Callable[[Path], object]) -> None:
        """Write a folder so that it is there whole or not at all."""
        partial = target.with_name(f".{target.name}.partial")
        for leftover in (partial, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        write(partial)
        partial.rename(target)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{prefix}.{key}" if prefix else str(key)).items()}
