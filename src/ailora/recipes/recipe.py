"""Base class of recipes: data, model, trainer and evaluation of a run."""

from __future__ import annotations

import copy
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ailora.model_loading import load_on_meta
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.data.classification_rows import warn_shared_sources
from ailora.recipes.position_limits import PositionLimits
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.arguments import build_arguments
from ailora.recipes.training.role_trainers import AdapterTrainer

ConfigT_co = TypeVar("ConfigT_co", bound=RunConfig, covariant=True)
Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Evaluation:
    """Measurements of a trained model.

    Attributes:
        result: Entries of `result.json`, including `metrics` (split -> name -> score).
        write: Function that writes scored predictions or generated samples to the folder of the run.
    """

    result: dict[str, Any]
    write: Callable[[RunFolder], None]


class Recipe(ABC, Generic[ConfigT_co]):
    """Data, model, trainer and evaluation of a run, for one kind of task. Data and tokenizer are read on first use.

    Args:
        config: Configuration of the run.
        result: Content of a finished run's `result.json`; None for training.
    """

    #: Key required in `result.json` of a finished run -> function to parse the value.
    result_keys: ClassVar[Mapping[str, Callable[[object], object]]] = MappingProxyType({})

    def __init__(self, config: ConfigT_co, result: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.result = result

    @cached_property
    def arguments(self) -> TrainingArguments:
        """Training arguments.

        Raises:
            InputError: transformers refuses a value.
        """
        return build_arguments(self.config, RunFolder(self.config.output).checkpoints)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model.

        Raises:
            InputError: The model is missing, or its tokenizer lacks a special token or a chat template.
        """
        return load_tokenizer(self.config.model)

    @cached_property
    def meta_model(self) -> PreTrainedModel:
        """Base model on the meta device, without weights.

        Raises:
            InputError: The model is missing, or has no class for the task.
        """
        return load_on_meta(self.config.model, self.config.task_type, num_labels=self.num_labels)

    @cached_property
    def position_limits(self) -> PositionLimits:
        """Maximum sequence lengths of the model."""
        return PositionLimits.from_model(self.meta_model)

    def prepare(self) -> None:
        """Read and validate arguments and data, before loading the model or creating a folder.

        Raises:
            InputError: Arguments or data are invalid.
        """
        _ = self.arguments, self.datasets
        warn_shared_sources(self.config.data)

    @abstractmethod
    def read_files(self) -> None:
        """Read and validate the rows of data files, without tokenizing them: a small part of the work of `prepare`.

        A dataset named by `data.dataset` is not read, because it may have to be downloaded.

        Raises:
            InputError: Data are missing or invalid.
        """

    @cached_property
    @abstractmethod
    def datasets(self) -> Mapping[str, Dataset]:
        """Tokenized rows of each split, with `labels`.

        Raises:
            InputError: The data are missing or invalid.
        """

    def pack(self, dataset: Dataset) -> Dataset:
        """Return the rows of an epoch: the tokenized rows, unless the recipe packs several rows into one."""
        return dataset

    @property
    def num_labels(self) -> int | None:
        """Number of outputs of the model's head; None for a language model."""
        return None

    @abstractmethod
    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        """Return a batch of tokenized rows, padded to the longest row."""

    @abstractmethod
    def load_model(self, path: str) -> PreTrainedModel:
        """Load a pretrained model, quantized as configured.

        Args:
            path: Folder or hub id.

        Returns:
            The model.

        Raises:
            InputError: The model is missing, or does not fit the task.
        """

    @abstractmethod
    def make_trainer(self, model: Model, arguments: TrainingArguments) -> AdapterTrainer:
        """Build the trainer of a model."""

    def training_batches(self, model: Model) -> DataLoader[dict[str, Tensor]]:
        """Return the data loader of training batches, for use before the run begins."""
        # A trainer creates its output folder and reports its arguments to trackers. Neither may happen before the run.
        arguments = copy.copy(self.arguments)
        arguments.report_to = []
        with tempfile.TemporaryDirectory() as folder:
            arguments.output_dir = folder
            return self.make_trainer(model, arguments).get_train_dataloader()

    def before_training(self, model: Model) -> None:
        """Measure the adapted model before training, for comparisons with the trained model. By default, do nothing."""

    @abstractmethod
    def evaluate(self, trainer: Trainer) -> Evaluation:
        """Evaluate the trained model on each split except the training data."""

    @abstractmethod
    def score(self, load: Callable[[], Model], data_file: str | None) -> dict[str, float]:
        """Compute loss and metrics for the model of a finished run.

        Args:
            load: Function that loads the model; called after the data are validated.
            data_file: File with the columns of the run's data; None selects the validation data.

        Returns:
            Loss and metrics by name.

        Raises:
            InputError: The data are missing or invalid.
        """

    @abstractmethod
    def predict(self, load: Callable[[], Model], input_file: str, output_file: Path) -> pd.DataFrame:
        """Predict each row of a file.

        Args:
            load: Function that loads the model; called after the data are validated.
            input_file: File with the input columns of the run's data.
            output_file: File to which the caller writes the predictions; only its format is validated here.

        Returns:
            Table of input columns and predictions.

        Raises:
            InputError: The data are invalid, the run generates no texts, or the output format cannot hold the table.
        """
