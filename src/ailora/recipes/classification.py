"""Sequence classification and regression with `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from ailora.distributed import is_main
from ailora.model_loading import resolve_model
from ailora.recipes.config.quantization import quantization_config
from ailora.recipes.config.schema import ClassificationConfig
from ailora.recipes.data.classification_rows import Examples, load_examples
from ailora.recipes.data.labels import Labels
from ailora.recipes.data.tokenize_pairs import check_max_length, collator, tokenize
from ailora.recipes.evaluation.classification_metrics import compute
from ailora.recipes.evaluation.predictions import Predictions, decide, first_output, write_frame
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_classifier, load_tokenizer
from ailora.recipes.training.fit import (
    Fitted,
    Model,
    Training,
    facts,
    fit,
    save_model,
    start,
    training_arguments,
    write_result,
)
from ailora.recipes.training.role_trainers import AdapterTrainer


def run(config: ClassificationConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train and evaluate; the same call after a kill continues, after the end it returns the result again.

    Args:
        config: from `load_config`.
        callbacks: further callbacks of the Trainer.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad data, a folder that holds another run.
        ModelError: the model cannot be adapted as asked.
    """
    folder = RunFolder(config.output)
    if result := folder.finished(config):
        return result
    arguments: TrainingArguments = training_arguments(config)
    data = load_splits(config)
    tokenizer = load_tokenizer(config.model)
    check_max_length(tokenizer, config.data.max_length, pairs=len(config.data.text) == 2)
    quantization = quantization_config(config)
    load = partial(load_classifier, resolve_model(config.model), data.labels, tokenizer, quantization=quantization)
    training = Training(arguments, partial(_trainer, config, data, tokenizer=tokenizer))
    model, init_seconds = start(config, load, training)
    # Claimed only now: bad input leaves no folder behind.
    with folder.claimed(config):
        fitted = fit(config, model, training, init_seconds=init_seconds, callbacks=callbacks)
        return _finish(config, fitted, data, tokenizer)


def _finish(
    config: ClassificationConfig, fitted: Fitted, data: LabelledData, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Evaluate every split, and write all that a finished run holds, `result.json` last."""
    folder = RunFolder(config.output)
    predictions = {
        split: Predictions.of(fitted.trainer, data.tokenized(split, tokenizer))
        for split in data.splits
        if split != "train"
    }
    metrics = {
        split: made.scores(config.metrics, data.labels, data.encoded[split]) for split, made in predictions.items()
    }
    names = list(data.labels.names) if data.labels.names else None
    result = {"metrics": metrics, "labels": names} | facts(config, fitted)
    save_model(config, fitted.trainer, result)
    if is_main():
        frames = [
            made.frame(data.labels, data.splits[split]).assign(split=split) for split, made in predictions.items()
        ]
        write_frame(pd.concat(frames), folder.predictions)
        write_result(folder, result)
    return result


@dataclass(frozen=True)
class LabelledData:
    """The splits of a run and the meaning of their labels."""

    splits: dict[str, Examples]
    labels: Labels
    encoded: dict[str, list[int | float]]
    max_length: int

    def tokenized(self, split: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """A split as the model takes it, with encoded labels."""
        return tokenize(self.splits[split], tokenizer, self.max_length).add_column("labels", self.encoded[split])


def load_splits(config: ClassificationConfig) -> LabelledData:
    """Read every split.

    Raises:
        InputError: bad data, labels that training does not have.
    """
    splits = {name: load_examples(config.data, name) for name in config.data.splits}
    labels = Labels.of(splits["train"].labels or [], splits["train"].where, regression=config.regression)
    encoded = {name: examples.encoded(labels) for name, examples in splits.items()}
    return LabelledData(splits, labels, encoded, config.data.max_length)


def _trainer(
    config: ClassificationConfig,
    data: LabelledData,
    model: Model,
    arguments: TrainingArguments,
    *,
    tokenizer: PreTrainedTokenizerBase,
) -> Trainer:
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        decided = decide(first_output(prediction.predictions), data.labels)
        return compute(config.metrics, np.asarray(prediction.label_ids), decided, classes=data.labels.count)

    return AdapterTrainer(
        adapter=config.adapter,
        model=model,
        args=arguments,
        train_dataset=data.tokenized("train", tokenizer),
        eval_dataset=data.tokenized("validation", tokenizer),
        data_collator=collator(tokenizer),
        compute_metrics=compute_metrics,
    )
