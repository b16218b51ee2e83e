"""Use a finished run: score it on data, predict with it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ailora.checkpoints.models import model_path
from ailora.errors import InputError
from ailora.recipes.examples import Examples, load_examples, to_examples
from ailora.recipes.labels import Labels
from ailora.recipes.models import load_classifier, load_tokenizer
from ailora.recipes.predictions import Predictions, check_output_kind, write_frame
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.schema import ClassificationConfig
from ailora.recipes.tables import Table, read_tables
from ailora.recipes.tokens import collator, tokenize


class FinishedRun:
    """A run that has ended, with its model loaded as any stock loader would.

    Raises:
        InputError: the folder holds no finished run.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = RunFolder(folder)
        self.config: ClassificationConfig = self._folder.read_config()
        names = self._folder.read_result()["labels"]
        self.labels = Labels(tuple(names) if names else None)

    def evaluate(self, data_file: str | None = None) -> dict[str, float]:
        """Loss and metrics on the run's validation data, or on a file with the same columns.

        Raises:
            InputError: bad data.
        """
        data = self.config.data
        if data_file is None:
            examples = load_examples(data, "validation")
        else:
            examples = to_examples(read_tables(data_file, data.columns), data)
        encoded = examples.encoded(self.labels)
        return self._predict(examples, encoded).scores(self.config.metrics, self.labels, encoded)

    def predict(self, input_file: str, output_file: Path | str) -> int:
        """Write text columns, prediction and scores for every row of a file; returns the number of rows.

        The input needs the text columns only; the output ends in .tsv, .csv, .jsonl or .parquet.

        Raises:
            InputError: bad data, an output of another kind.
        """
        output, text = Path(output_file), self.config.data.text
        check_output_kind(output)
        if output.exists() and Path(input_file).exists() and output.samefile(input_file):
            raise InputError(
                f"{output} is the input: predictions written there would replace it; choose another output"
            )
        examples = to_examples(self._read_input(input_file), self.config.data, labelled=False)
        frame = self._predict(examples).frame(self.labels, examples)
        for position, name in enumerate(text):
            frame.insert(position + 1, name, [texts[position] for texts in examples.texts])
        if "scores" in frame:
            frame["scores"] = [scores.tolist() for scores in frame["scores"]]
        write_frame(frame, output)
        return len(frame)

    def _read_input(self, input_file: str) -> Table:
        """Files without a header may hold all of the run's columns or its text columns alone."""
        columns = self.config.data.columns
        try:
            return read_tables(input_file, columns)
        except InputError:
            if columns is None:
                raise
            return read_tables(input_file, self.config.data.text)

    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
        folder = self._folder.model if self.config.adapter.full else self._folder.adapter
        self._check_written(folder)
        if self.config.adapter.full:
            return load_classifier(str(folder), self.labels, tokenizer)
        base = load_classifier(model_path(self.config.model), self.labels, tokenizer)
        try:
            return PeftModel.from_pretrained(base, folder)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"cannot load the adapter {folder} ({error}): {self._folder.rewriting}") from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise InputError(f"cannot load the adapter {folder}: {error}") from error

    def _check_written(self, folder: Path) -> None:
        """transformers and PEFT would look for a missing file on the hub."""
        prefix = "" if self.config.adapter.full else "adapter_"
        for name in (f"{prefix}config.json", f"{prefix}model*.safetensors"):
            if not any(folder.glob(name)):
                raise InputError(f"{folder} has no {name.replace('*', '')}: {self._folder.rewriting}")

    def _predict(self, examples: Examples, encoded: list[int | float] | None = None) -> Predictions:
        tokenizer = load_tokenizer(self.config.model)
        dataset = tokenize(examples, tokenizer, self.config.data.max_length)
        if encoded is not None:
            dataset = dataset.add_column("labels", encoded)
        model = self._load_model(tokenizer)
        arguments = TrainingArguments(
            output_dir=str(self._folder.checkpoints),
            per_device_eval_batch_size=self.config.training["per_device_eval_batch_size"],
            dataloader_pin_memory=torch.accelerator.is_available(),
            report_to="none",
            disable_tqdm=self.config.training.get("disable_tqdm", False),
        )
        return Predictions.of(Trainer(model=model, args=arguments, data_collator=collator(tokenizer)), dataset)
