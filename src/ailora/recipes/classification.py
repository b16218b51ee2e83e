"""Recipe for sequence classification and regression, trained with `transformers.Trainer`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from ailora.errors import InputError
from ailora.recipes.config.quantization import build_quantization_config
from ailora.recipes.config.schema import ClassificationConfig
from ailora.recipes.data.classification_rows import Examples, load_all_examples, load_examples, to_examples
from ailora.recipes.data.labels import Labels
from ailora.recipes.data.readers import Table, read_tables
from ailora.recipes.data.tokenize_pairs import tokenize, validate_max_length
from ailora.recipes.evaluation.predictions import Predictions, extract_logits, order_by_length, score_logits
from ailora.recipes.evaluation.table_file import encode_frame, write_frame
from ailora.recipes.position_limits import count_tokens
from ailora.recipes.recipe import Evaluation, Model, Recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_classifier
from ailora.recipes.training.role_trainers import AdapterTrainer


class ClassificationRecipe(Recipe[ClassificationConfig]):
    """Recipe for models that assign classes or numbers to texts or text pairs."""

    result_keys: ClassVar[Mapping[str, Callable[[object], object]]] = {"labels": Labels.from_result}

    @cached_property
    def rows(self) -> dict[str, Examples]:
        """Examples of each split, before sampling."""
        return {split: load_all_examples(self.config.data, split) for split in self.config.data.splits}

    @cached_property
    def examples(self) -> dict[str, Examples]:
        """Examples of each split, after sampling."""
        return {split: rows.sample(self.config.data.max_samples(split)) for split, rows in self.rows.items()}

    @cached_property
    def labels(self) -> Labels:
        """Classes in all training rows; for a finished run, the classes in its result."""
        if self.result is not None:
            return Labels.from_result(self.result["labels"])
        # Use all rows, because a sample may lack a rare class that other splits contain.
        train = self.rows["train"]
        return Labels.from_values(train.labels or [], train.origins, regression=self.config.regression)

    @cached_property
    def encoded_labels(self) -> dict[str, list[int | float]]:
        """Labels of each split, as class ids, or as numbers for regression."""
        return {split: examples.encode_labels(self.labels) for split, examples in self.examples.items()}

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        encoded_labels, data = self.encoded_labels, self.config.data
        validate_max_length(self.tokenizer, data.max_length, pairs=len(data.text) == 2)
        datasets = {split: self._tokenize(examples, encoded_labels[split]) for split, examples in self.examples.items()}
        self.position_limits.warn_beyond_context(count_tokens(datasets["train"]), key="data.max_length")
        return datasets

    def read_files(self) -> None:
        if self.config.data.dataset is None:
            # Encoding the labels reads all rows and validates their labels.
            _ = self.encoded_labels

    @property
    def num_labels(self) -> int:
        return self.labels.num_labels

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        return dict(DataCollatorWithPadding(self.tokenizer)(rows))

    def load_model(self, path: str) -> PreTrainedModel:
        return load_classifier(path, self.labels, self.tokenizer, quantization=build_quantization_config(self.config))

    def make_trainer(self, model: Model, arguments: TrainingArguments) -> AdapterTrainer:
        validation = self.datasets["validation"]
        return AdapterTrainer(
            adapter=self.config.adapter,
            model=model,
            args=arguments,
            train_dataset=self.datasets["train"],
            eval_dataset=validation.select(order_by_length(validation)),
            data_collator=DataCollatorWithPadding(self.tokenizer),
            compute_metrics=self._compute_metrics,
        )

    def evaluate(self, trainer: Trainer) -> Evaluation:
        held_out = {split: dataset for split, dataset in self.datasets.items() if split != "train"}
        predictions = {split: Predictions.from_trainer(trainer, dataset) for split, dataset in held_out.items()}
        metrics = {
            split: predicted.score(self.config.metrics, self.labels, self.encoded_labels[split])
            for split, predicted in predictions.items()
        }

        def write(folder: RunFolder) -> None:
            frames = [
                predicted.to_frame(self.labels, self.examples[split]).assign(split=split)
                for split, predicted in predictions.items()
            ]
            write_frame(pd.concat(frames), folder.predictions)

        names = list(self.labels.names) if self.labels.names else None
        return Evaluation({"metrics": metrics, "labels": names}, write)

    def score(self, load: Callable[[], Model], data_file: str | None) -> dict[str, float]:
        data = self.config.data
        if data_file is None:
            examples = load_examples(data, "validation")
        else:
            examples = to_examples(read_tables(data_file, data.columns, named=data.named_columns), data)
        encoded_labels = examples.encode_labels(self.labels)
        predictions = self._predict_dataset(load, self._tokenize(examples, encoded_labels))
        return predictions.score(self.config.metrics, self.labels, encoded_labels)

    def predict(self, load: Callable[[], Model], input_file: str, output_file: Path) -> pd.DataFrame:
        data = self.config.data
        examples = to_examples(self._read_input(input_file), data, labelled=False)
        # Fail before loading the model if the output format cannot hold a text or label.
        encode_frame(pd.DataFrame(examples.texts, columns=data.text), output_file)
        encode_frame(pd.DataFrame({"prediction": self.labels.names or ()}), output_file)
        frame = self._predict_dataset(load, self._tokenize(examples)).to_frame(self.labels, examples)
        # Insert the text columns after the first column, `row`.
        for i, name in enumerate(data.text):
            frame.insert(i + 1, name, [texts[i] for texts in examples.texts])
        if "scores" in frame:
            frame["scores"] = [scores.tolist() for scores in frame["scores"]]
        return frame

    def _tokenize(self, examples: Examples, encoded_labels: list[int | float] | None = None) -> Dataset:
        dataset = tokenize(examples, self.tokenizer, self.config.data.max_length)
        self.position_limits.validate(count_tokens(dataset), examples.origins, remedy="data.max_length")
        return dataset if encoded_labels is None else dataset.add_column("labels", encoded_labels)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, encoded_labels = extract_logits(prediction.predictions), np.asarray(prediction.label_ids)
        return score_logits(self.config.metrics, self.labels, logits, encoded_labels)

    def _read_input(self, input_file: str) -> Table:
        """Read a file for prediction. A file without a header has all columns of the data, or only the text columns."""
        columns, texts = self.config.data.columns, self.config.data.text
        try:
            return read_tables(input_file, columns, named=texts)
        except InputError as error:
            if columns is None:
                raise
            # Keep the order of `data.columns`, as in the data files. `data.text` may have another order.
            text_columns = [name for name in columns if name in texts]
            try:
                return read_tables(input_file, text_columns, named=texts)
            except InputError as text_error:
                if str(error) == str(text_error):
                    raise
                raise InputError(f"{error}; with only the text columns: {text_error}") from None

    def _predict_dataset(self, load: Callable[[], Model], dataset: Dataset) -> Predictions:
        training = self.config.training
        # A trainer creates its output folder. Prediction must not write to the run's folder, nor to the path in the
        # configuration, from which the folder may have been moved.
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_eval_batch_size=training["per_device_eval_batch_size"],
                dataloader_pin_memory=torch.accelerator.is_available(),
                report_to="none",
                disable_tqdm=training.get("disable_tqdm", False),
            )
            trainer = Trainer(model=load(), args=arguments, data_collator=DataCollatorWithPadding(self.tokenizer))
            return Predictions.from_trainer(trainer, dataset)
