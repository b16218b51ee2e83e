"""A recipe applied to a configuration: its data, its model, its trainer and what is measured at the end."""

from __future__ import annotations

import copy
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ailora.recipes.config.schema import RunConfig
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
        result: entries of `result.json`, `metrics` (split -> name -> score) among them.
        write: writes the predictions or samples that were scored into the run's folder.
    """

    result: dict[str, Any]
    write: Callable[[RunFolder], None]


class Recipe(ABC, Generic[ConfigT_co]):
    """A recipe applied to a configuration. Data and tokenizer are read when they are first needed.

    Args:
        config: the run's.
        result: what `result.json` of a finished run holds; None for a run that is to be trained.
    """

    #: Keys of `result.json` that a finished run is used with.
    result_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigT_co, result: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.result = result

    @cached_property
    def arguments(self) -> TrainingArguments:
        """The trainer's arguments.

        Raises:
            InputError: transformers refuses a value.
        """
        return build_arguments(self.config, RunFolder(self.config.output).checkpoints)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model.

        Raises:
            InputError: there is no such model, or its tokenizer lacks a token or template.
        """
        return load_tokenizer(self.config.model)

    def prepare(self) -> None:
        """Read everything that a run needs before its model is loaded: bad input leaves no folder behind.

        Raises:
            InputError: bad arguments or data.
        """
        _ = self.arguments, self.datasets

    @cached_property
    @abstractmethod
    def datasets(self) -> Mapping[str, Dataset]:
        """Tokenized rows of every split, with `labels`.

        Raises:
            InputError: bad data.
        """

    @property
    def num_labels(self) -> int | None:
        """Outputs of the model's head, or None if the task has no classes."""
        return None

    @abstractmethod
    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        """Pad tokenized rows to the longest of them."""

    @abstractmethod
    def load_model(self, path: str) -> PreTrainedModel:
        """Load a model from a folder or hub id, quantized as the configuration says.

        Raises:
            InputError: there is no such model, or none for the task.
        """

    @abstractmethod
    def make_trainer(self, model: Model, arguments: TrainingArguments) -> AdapterTrainer:
        """Make the trainer of a model."""

    def training_batches(self, model: Model) -> DataLoader[dict[str, Tensor]]:
        """Make the loader of the training batches of a run that has not begun. Nothing is written or reported."""
        arguments = copy.copy(self.arguments)
        arguments.report_to = []
        with tempfile.TemporaryDirectory() as folder:
            arguments.output_dir = folder
            return self.make_trainer(model, arguments).get_train_dataloader()

    def before_training(self, model: Model) -> None:
        """Measure what can only be measured of the adapted model before it is trained."""

    @abstractmethod
    def evaluate(self, trainer: Trainer) -> Evaluation:
        """Measure the trained model on every split but the training rows."""

    @abstractmethod
    def score(self, load: Callable[[], Model], data_file: str | None) -> dict[str, float]:
        """Compute loss and metrics of a finished run's model.

        Args:
            load: loads the model; called when the data have been read.
            data_file: a file with the columns of the run's data; None for the run's validation data.

        Raises:
            InputError: bad data.
        """

    @abstractmethod
    def predict(self, load: Callable[[], Model], input_file: str, output_file: Path) -> pd.DataFrame:
        """Predict every row of a file, beside the columns that were read. `output_file` is not written.

        Raises:
            InputError: bad data, a run that predicts nothing, or an output whose format cannot hold the texts.
        """
