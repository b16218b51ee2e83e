"""Base class of the recipes for language models: rows, likelihood, generation, forgetting."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ailora.errors import InputError
from ailora.plan.task_type import TaskType
from ailora.recipes.baselines.adapter_origin import get_adapter_origin
from ailora.recipes.config.quantization import build_quantization_config
from ailora.recipes.config.schema import LanguageConfig
from ailora.recipes.data.language_rows import Row, Rows, load_rows, to_rows
from ailora.recipes.data.readers import read_tables
from ailora.recipes.data.templates import Template
from ailora.recipes.data.tokenize_language import Tokenization, prepare_tokenizer
from ailora.recipes.evaluation.language_evaluation import Evaluator, measure_forgetting, write_samples
from ailora.recipes.evaluation.perplexity import Likelihood
from ailora.recipes.evaluation.table_file import encode_frame
from ailora.recipes.evaluation.text_generation import (
    build_generation_config,
    get_cache_width,
    try_generation,
    validate_no_max_length,
)
from ailora.recipes.position_limits import count_tokens
from ailora.recipes.recipe import Evaluation, Model, Recipe
from ailora.recipes.task_models import load_language_model
from ailora.recipes.training.role_trainers import AdapterTrainer

_LOG = logging.getLogger("ailora")
#: Name of the column in which `ailora predict` writes completions.
_OUTPUT_COLUMN = "output"

LanguageConfigT_co = TypeVar("LanguageConfigT_co", bound=LanguageConfig, covariant=True)


class LanguageRecipe(Recipe[LanguageConfigT_co]):
    """Base class of the recipes for language models."""

    trainer_class: ClassVar[type[AdapterTrainer]]
    #: Configuration key with the maximum length of rows.
    length_key: ClassVar[str]
    _base_likelihood: Likelihood | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = super().tokenizer
        prepare_tokenizer(tokenizer, name=self.config.model)
        return tokenizer

    @cached_property
    @abstractmethod
    def tokenization(self) -> Tokenization:
        """Tokenizer of the model, with settings for truncation and loss."""

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluator of the run.

        Raises:
            InputError: A field of `evaluation.generate` is invalid.
        """
        fields = self.config.evaluation.generate
        chat = getattr(self.config.data, "messages", None) is not None
        # Earlier versions accepted max_length, so finished runs may have this field and still generate as before.
        if fields is not None and self.result is None:
            validate_no_max_length(fields)
        generation = None if fields is None else build_generation_config(fields, self.tokenizer, chat=chat)
        batch_size = self.arguments.per_device_eval_batch_size
        if generation is not None:
            seq2seq = self.config.task_type is TaskType.SEQ_2_SEQ_LM
            width = get_cache_width(self.meta_model.config)
            try_generation(generation, self.tokenizer, batch_size=batch_size, seq2seq=seq2seq, cache_width=width)
        return Evaluator(self.config.evaluation, self.tokenization, generation, batch_size)

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Rows of each split, before sampling."""
        group_columns = self.config.evaluation.group_columns
        return {split: load_rows(self.config.data, split, group_columns) for split in self.config.data.splits}

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        evaluator, data = self.evaluator, self.config.data
        samples = {split: rows.sample(data.max_samples(split)) for split, rows in self.rows.items()}
        train = self._tokenize(samples["train"], self.count_positions)
        self.position_limits.warn_beyond_context(self.count_positions(train), key=self.length_key)
        datasets = {"train": train} | {split: self._tokenize(samples[split]) for split in data.splits[1:]}
        if evaluator.generation is not None:
            # Fail before training if a column of group_by is missing, or a prompt is too long.
            for split in data.splits[1:]:
                self._validate_prompts([group[0] for group in evaluator.group_inputs(self.rows[split])])
        return datasets

    def count_positions(self, dataset: Dataset) -> list[int]:
        """Return the number of positions that each row occupies during training."""
        return count_tokens(dataset)

    def _tokenize(self, rows: Rows, count_positions: Callable[[Dataset], list[int]] = count_tokens) -> Dataset:
        """Tokenize rows, and validate that they fit into the positions of the model."""
        dataset = self.tokenization.tokenize(rows)
        origins = [row.origin for row in rows.rows]
        self.position_limits.validate(count_positions(dataset), origins, remedy=self.length_key)
        return dataset

    def _validate_prompts(self, rows: Sequence[Row]) -> None:
        """Validate that each prompt, with the longest possible completion, fits into the positions of the model."""
        generation, limits = self.evaluator.generation, self.position_limits
        # Tokenizing prompts takes time, so it is skipped for models that accept any length.
        if generation is not None and (limits.max_input, limits.max_output) != (None, None):
            prompts = [self.tokenization.encode_prompt(row) for row in rows]
            limits.validate_generation(prompts, [row.origin for row in rows], generation)

    @cached_property
    def _general_rows(self) -> Rows | None:
        evaluation = self.config.evaluation
        if evaluation.general_text is None:
            return None
        template = Template.parse(evaluation.general_template, "evaluation.general_template")
        table = read_tables(evaluation.general_text, named=template.names)
        # A row without a prompt is plain text.
        rows = [
            Row(origin, prompt=None, completion=template.fill(values, origin), values=values)
            for values, origin in table.records()
        ]
        return Rows(rows).sample(evaluation.max_general_samples)

    @cached_property
    def general(self) -> Dataset | None:
        """Tokenized text of `evaluation.general_text`; None if forgetting is not measured."""
        return None if self._general_rows is None else self._tokenize(self._general_rows)

    def prepare(self) -> None:
        super().prepare()
        _ = self.general  # reads and validates the text

    def read_files(self) -> None:
        _ = self._general_rows  # reads and validates the files, as does `self.rows`
        if self.config.data.dataset is None:
            _ = self.rows

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        return self.evaluator.collate(rows)

    def load_model(self, path: str) -> PreTrainedModel:
        quantization = build_quantization_config(self.config)
        return load_language_model(path, self.tokenizer, self.config.task_type, quantization=quantization)

    def make_collator(self, model: Model) -> DataCollatorForSeq2Seq | None:  # noqa: ARG002
        """Build the data collator of a model's trainer; None for the trainer's default."""
        return None

    def make_trainer(self, model: Model, arguments: TrainingArguments) -> AdapterTrainer:
        return self.trainer_class(
            adapter=self.config.adapter,
            model=model,
            args=arguments,
            train_dataset=self.datasets["train"],
            eval_dataset=self.datasets["validation"],
            processing_class=self.tokenizer,
            data_collator=self.make_collator(model),
        )

    def before_training(self, model: Model) -> None:
        """Measure the likelihood of general text under the base model, if training overwrites the base."""
        # Before training, the adapted model computes the same function as the base. If the base stays unchanged,
        # `measure_forgetting` measures the base after training, with the adapter disabled.
        if self.general is not None and get_adapter_origin(model).overwrites_base:
            self._base_likelihood = self.evaluator.compute_likelihood(model, self.general)

    def evaluate(self, trainer: Trainer) -> Evaluation:
        model = trainer.model
        assert model is not None
        metrics, samples = {}, []
        for split in self.config.data.splits[1:]:
            metrics[split], generated = self.evaluator.measure(model, self.datasets[split], self.rows[split])
            samples += [{"split": split, **sample} for sample in generated]
        result: dict[str, Any] = {"metrics": metrics}
        if self.general is not None:
            result["forgetting"] = measure_forgetting(self.evaluator, model, self.general, self._base_likelihood)
        has_samples = self.evaluator.generation is not None
        return Evaluation(result, lambda folder: write_samples(folder.samples, samples) if has_samples else None)

    def score(self, load: Callable[[], Model], data_file: str | None) -> dict[str, float]:
        data, group_columns = self.config.data, self.config.evaluation.group_columns
        if data_file is None:
            rows = load_rows(data, "validation", group_columns)
            sample = rows.sample(data.max_validation_samples)
        else:
            table = read_tables(data_file, data.columns, named={*data.named_columns, *group_columns})
            rows = sample = to_rows(table, data)
        dataset = self._tokenize(sample)
        if self.evaluator.generation is not None:
            self._validate_prompts([group[0] for group in self.evaluator.group_inputs(rows)])
        scores, _ = self.evaluator.measure(load(), dataset, rows)
        return scores

    def predict(self, load: Callable[[], Model], input_file: str, output_file: Path) -> pd.DataFrame:
        """Generate a completion for each row of a file, in the column `output`."""
        if output_file.suffix == ".tsv":
            raise InputError(
                f"{output_file}: a .tsv file cannot hold the tabs and line breaks that generated texts may contain; "
                "choose .csv, .jsonl or .parquet"
            )
        if self.evaluator.generation is None:
            raise InputError(f"{self.config.output} cannot generate text: its config.yaml has no evaluation.generate")
        rows = to_rows(read_tables(input_file, self.config.data.columns), self.config.data, complete=False).rows
        self._validate_prompts(rows)
        # Without the dtype, pandas would convert a column of integers with missing values to floats.
        frame = pd.DataFrame([row.values for row in rows], dtype=object)
        if _OUTPUT_COLUMN in frame:
            _LOG.warning(
                "%s omits the input column %r, because completions are in a column of this name",
                output_file,
                _OUTPUT_COLUMN,
            )
        # Fail before hours of generation if the format cannot hold a value.
        encode_frame(frame, output_file)
        return frame.assign(**{_OUTPUT_COLUMN: self.evaluator.generate(load(), rows)})
