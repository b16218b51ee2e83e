"""Evaluate a finished run of any recipe, and predict with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ailora.adapter_io.peft_adapter import load_peft_adapter
from ailora.checkpoints.output_file import validate_output_file
from ailora.errors import InputError, ModelError
from ailora.model_path import resolve_model
from ailora.recipes.config.method import CustomFunction, FullFineTuning
from ailora.recipes.config.sections import RunConfig
from ailora.recipes.evaluation.table_file import validate_output_suffix, write_frame
from ailora.recipes.recipe import Model, Recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import validate_finite


@dataclass(frozen=True)
class TrainedRun:
    """Finished run, whose model is loaded by the stock loaders of transformers and PEFT.

    Attributes:
        folder: folder of the run.
        recipe: recipe of the run, with its result.
    """

    folder: RunFolder
    recipe: Recipe[RunConfig]

    def evaluate(self, data_file: str | None = None) -> dict[str, float]:
        """Compute loss and metrics.

        Args:
            data_file: file with the columns of the run's data; None for its validation data.

        Returns:
            Loss and metrics by name.

        Raises:
            InputError: The data are missing or invalid, or the model is.
        """
        return self.recipe.score(self.load, data_file)

    def predict(self, input_file: str, output_file: Path | str, *, force: bool = False) -> int:
        """Write a prediction for each row of a file.

        Args:
            input_file: file with the input columns of the run's data; labels are not needed.
            output_file: file ending in .tsv, .csv, .jsonl or .parquet.
            force: whether an existing file may be replaced.

        Returns:
            The number of rows.

        Raises:
            InputError: The data are invalid, or the output cannot be written, exists without `force`, or would replace
                the input or a part of the run.
        """
        output = validate_output_file(output_file, force=force, reads=[input_file, self.folder.path])
        validate_output_suffix(output)
        frame = self.recipe.predict(self.load, input_file, output)
        write_frame(frame, output)
        return len(frame)

    def load(self) -> Model:
        """Load the trained model onto the accelerator, if there is one.

        Returns:
            The model, with its adapter if it has one.

        Raises:
            InputError: A file of the run is missing or damaged.
        """
        model: Any = self._load()
        # The library places a quantized model, and may refuse to move it.
        if self.recipe.config.quantization is not None:
            return model
        return model.to(torch.accelerator.current_accelerator() or "cpu")

    def _load(self) -> Model:
        config, folder = self.recipe.config, self.folder
        method = config.adapter.method
        # A function of the user may return an adapted model, or one that is trained whole.
        whole = isinstance(method, FullFineTuning) or (isinstance(method, CustomFunction) and folder.model.is_dir())
        written = folder.model if whole else folder.adapter
        _validate_written(folder, written, prefix="" if whole else "adapter_")
        if whole:
            try:
                return validate_finite(self.recipe.load_model(str(written)), written)
            except InputError as error:
                raise InputError(f"cannot load the model {written} ({error}): {folder.rewrite_hint}") from error
        base = self.recipe.load_model(resolve_model(config.model))
        try:
            adapted = load_peft_adapter(base, written)
        except (SafetensorError, InputError) as error:
            raise InputError(f"cannot load the adapter {written} ({error}): {folder.rewrite_hint}") from error
        except ModelError as error:
            raise InputError(f"cannot load the adapter {written}: {error}") from error
        return validate_finite(adapted, written)


def _validate_written(folder: RunFolder, written: Path, *, prefix: str) -> None:
    # transformers and PEFT would look for a missing file on the hub.
    for name in (f"{prefix}config.json", f"{prefix}model*.safetensors"):
        if not any(written.glob(name)):
            raise InputError(f"{written} has no {name.replace('*', '')}: {folder.rewrite_hint}")


def read_result(folder: RunFolder, keys: Mapping[str, Callable[[object], object]]) -> dict[str, Any]:
    """Read the result of a finished run.

    Args:
        folder: folder of the run.
        keys: keys that the result must have, and what reads their values.

    Returns:
        Content of `result.json`.

    Raises:
        InputError: The run has not finished, or its result is damaged.
    """
    result = folder.read_result()
    for key, read in keys.items():
        try:
            if key not in result:
                raise InputError(f"it has no {key}")
            read(result[key])
        except InputError as error:
            raise InputError(f"{folder.result} is damaged ({error}): {folder.rewrite_hint}") from None
    return result
