"""Evaluate a finished run of any recipe, and predict with its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ailora.adapter_io.peft_adapter import load_peft_adapter
from ailora.checkpoints.output_file import validate_output_file
from ailora.errors import InputError, ModelError
from ailora.model_loading import default_device
from ailora.model_path import resolve_model
from ailora.recipes.config.method import CustomFunction, FullFineTuning
from ailora.recipes.config.sections import RunConfig
from ailora.recipes.evaluation.table_file import validate_output_suffix, write_frame
from ailora.recipes.recipe import Model, Recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import validate_finite


@dataclass(frozen=True)
class TrainedRun:
    """Finished run. Its model is loaded with transformers and PEFT.

    Attributes:
        folder: Folder of the run.
        recipe: Recipe of the run.
    """

    folder: RunFolder
    recipe: Recipe[RunConfig]

    def evaluate(self, data_file: Path | str | None = None) -> dict[str, float]:
        """Compute loss and metrics.

        Args:
            data_file: File with the columns of the run's data. None for the run's validation data.

        Returns:
            Loss and metrics by name.

        Raises:
            InputError: The data or the files of the model are missing or invalid.
        """
        return self.recipe.score(self.load, None if data_file is None else str(data_file))

    def predict(self, input_file: Path | str, output_file: Path | str, *, force: bool = False) -> int:
        """Write a prediction for each row of a file.

        Args:
            input_file: File with the input columns of the run's data; columns with labels may be missing.
            output_file: File to write; ends in .tsv, .csv, .jsonl or .parquet.
            force: Whether to replace an existing file.

        Returns:
            The number of rows.

        Raises:
            InputError: The data are invalid, or the output file cannot be written, exists (unless `force`), or is the
                input file or a part of the run.
        """
        # Predictions can take hours, so an output file that cannot be written is refused first.
        output = validate_output_file(output_file, force=force, reads=[input_file, self.folder.path])
        validate_output_suffix(output)
        frame = self.recipe.predict(self.load, str(input_file), output)
        write_frame(frame, output)
        return len(frame)

    def load(self) -> Model:
        """Load the trained model onto the accelerator, or onto the CPU if there is no accelerator.

        Returns:
            The adapted or fully fine-tuned model.

        Raises:
            InputError: A file of the run is missing or damaged.
        """
        model: Any = self._load()
        # transformers loads a model quantized with bitsandbytes directly onto the accelerator, and refuses to move it.
        if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
            return model
        return model.to(default_device())

    def _load(self) -> Model:
        config, folder = self.recipe.config, self.folder
        method = config.adapter.method
        # A custom function may return an adapted or a fully fine-tuned model. Only the saved files show which.
        full = isinstance(method, FullFineTuning) or (isinstance(method, CustomFunction) and folder.model.is_dir())
        saved_dir = folder.model if full else folder.adapter
        _validate_saved_files(folder, saved_dir, prefix="" if full else "adapter_")
        if full:
            try:
                return validate_finite(self.recipe.load_model(str(saved_dir)), saved_dir)
            except InputError as error:
                raise InputError(f"cannot load the model {saved_dir} ({error}): {folder.rewrite_hint}") from error
        base = self.recipe.load_model(resolve_model(config.model))
        try:
            adapted = load_peft_adapter(base, saved_dir)
        except (SafetensorError, InputError) as error:
            raise InputError(f"cannot load the adapter {saved_dir} ({error}): {folder.rewrite_hint}") from error
        # The adapter is intact, but does not fit its base model, so writing the adapter again would not help.
        except ModelError as error:
            raise InputError(f"cannot load the adapter {saved_dir}: {error}") from error
        return validate_finite(adapted, saved_dir)


def _validate_saved_files(folder: RunFolder, saved_dir: Path, *, prefix: str) -> None:
    # transformers and PEFT would look for a missing file on the hub.
    for pattern in (f"{prefix}config.json", f"{prefix}model*.safetensors"):
        if not any(saved_dir.glob(pattern)):
            raise InputError(f"{saved_dir} has no {pattern.replace('*', '')}: {folder.rewrite_hint}")


def read_result(folder: RunFolder, parsers: Mapping[str, Callable[[object], object]]) -> dict[str, Any]:
    """Read and validate the result of a finished run.

    Args:
        folder: Folder of the run.
        parsers: Required key of the result -> function that raises InputError if the value is invalid.

    Returns:
        Content of `result.json`.

    Raises:
        InputError: The run has not finished, or its result is damaged.
    """
    result = folder.read_result()
    for key, parse in parsers.items():
        try:
            if key not in result:
                raise InputError(f"the key {key} is missing")
            parse(result[key])
        except InputError as error:
            raise InputError(f"{folder.result} is damaged ({error}): {folder.rewrite_hint}") from None
    return result
