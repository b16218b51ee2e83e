"""Use a finished run, whatever its recipe: score it on data, predict with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ailora.errors import InputError
from ailora.model_loading import resolve_model
from ailora.recipes.config.method import CustomFunction, FullFineTuning
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.evaluation.predictions import check_output_kind
from ailora.recipes.run_folder import RunFolder


class FinishedRun(Protocol):
    """What every finished run can do."""

    def evaluate(self, data_file: str | None = None) -> dict[str, float]:
        """Loss and metrics on the run's validation data, or on a file with the same columns.

        Raises:
            InputError: bad data.
        """
        ...

    def predict(self, input_file: str, output_file: Path | str) -> int:
        """Write what the model says of every row of a file; returns the number of rows.

        Raises:
            InputError: bad data, an output of another kind.
        """
        ...


def load_trained(
    folder: RunFolder, config: RunConfig, load: Callable[[str], PreTrainedModel]
) -> PreTrainedModel | PeftModel:
    """The trained model of a finished run.

    Args:
        folder: the run's.
        config: the run's.
        load: loads a model of the run's kind from a folder or hub id.

    Raises:
        InputError: what the run wrote is missing or damaged.
    """
    # A function of the user's may have returned either.
    method = config.adapter.method
    whole = isinstance(method, FullFineTuning) or (isinstance(method, CustomFunction) and folder.model.is_dir())
    written = folder.model if whole else folder.adapter
    _check_written(folder, written, whole=whole)
    if whole:
        return load(str(written))
    base = load(resolve_model(config.model))
    try:
        return PeftModel.from_pretrained(base, written)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"cannot load the adapter {written} ({error}): {folder.rewriting}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"cannot load the adapter {written}: {error}") from error


def _check_written(folder: RunFolder, written: Path, *, whole: bool) -> None:
    """transformers and PEFT would look for a missing file on the hub."""
    prefix = "" if whole else "adapter_"
    for name in (f"{prefix}config.json", f"{prefix}model*.safetensors"):
        if not any(written.glob(name)):
            raise InputError(f"{written} has no {name.replace('*', '')}: {folder.rewriting}")


def result_of(folder: RunFolder, *keys: str) -> dict[str, Any]:
    """The result of a finished run, which has these keys.

    Raises:
        InputError: the run has not finished, or its result is damaged.
    """
    result = folder.read_result()
    for key in keys:
        if key not in result:
            raise InputError(f"{folder.result} is damaged (it has no {key}): {folder.rewriting}")
    return result


def check_output(output: Path, input_file: str) -> None:
    """Refuse an output that cannot be written, or would replace its input.

    Raises:
        InputError: which.
    """
    check_output_kind(output)
    if output.exists() and Path(input_file).exists() and output.samefile(input_file):
        raise InputError(f"{output} is the input: predictions written there would replace it; choose another output")
