"""Use a finished run of the classification recipe: score it on data, predict with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from ailora.errors import InputError
from ailora.recipes.config.quantization import quantization_config
from ailora.recipes.config.schema import ClassificationConfig
from ailora.recipes.data.classification_rows import Examples, load_examples, to_examples
from ailora.recipes.data.labels import Labels
from ailora.recipes.data.readers import Table, read_tables
from ailora.recipes.data.tokenize_pairs import collator, tokenize
from ailora.recipes.evaluation.predictions import Predictions, write_frame
from ailora.recipes.inference.trained_run import check_output, load_trained, result_of
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_classifier, load_tokenizer


class FinishedClassification:
    """A run that has ended, with its model loaded as any stock loader would.

    Raises:
        InputError: the folder holds no finished run.
    """

    def __init__(self, folder: RunFolder, config: ClassificationConfig) -> None:
        self._folder = folder
        self.config = config
        names = result_of(folder, "labels")["labels"]
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
        check_output(output, input_file)
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

    def _predict(self, examples: Examples, encoded: list[int | float] | None = None) -> Predictions:
        tokenizer = load_tokenizer(self.config.model)
        dataset = tokenize(examples, tokenizer, self.config.data.max_length)
        if encoded is not None:
            dataset = dataset.add_column("labels", encoded)
        load = partial(
            load_classifier, labels=self.labels, tokenizer=tokenizer, quantization=quantization_config(self.config)
        )
        model = load_trained(self._folder, self.config, load)
        arguments = TrainingArguments(
            output_dir=str(self._folder.checkpoints),
            per_device_eval_batch_size=self.config.training["per_device_eval_batch_size"],
            dataloader_pin_memory=torch.accelerator.is_available(),
            report_to="none",
            disable_tqdm=self.config.training.get("disable_tqdm", False),
        )
        return Predictions.of(Trainer(model=model, args=arguments, data_collator=collator(tokenizer)), dataset)
