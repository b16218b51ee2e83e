"""Predictions of a classification or regression model: compute, score and tabulate them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import Trainer

from ailora.recipes.data.classification_rows import Examples
from ailora.recipes.data.labels import Labels
from ailora.recipes.evaluation.classification_metrics import compute_metrics
from ailora.recipes.position_limits import count_tokens


@dataclass(frozen=True)
class Predictions:
    """Outputs of a model for the rows of a split.

    Attributes:
        logits: Logits (rows, classes), or predicted numbers (rows, 1) for regression.
        loss: Mean loss over the rows. None if the rows have no labels.
    """

    logits: np.ndarray
    loss: float | None

    @classmethod
    def from_trainer(cls, trainer: Trainer, dataset: Dataset) -> Predictions:
        """Run a trainer's model over a tokenized dataset.

        Args:
            trainer: Trainer of the model.
            dataset: Tokenized rows, with or without `labels`.

        Returns:
            The predictions, in the order of the rows.
        """
        order = order_by_length(dataset)
        output = trainer.predict(dataset.select(order))  # type: ignore[arg-type]
        sorted_logits = extract_logits(output.predictions)
        logits = np.empty_like(sorted_logits)
        logits[order] = sorted_logits
        return cls(logits, (output.metrics or {}).get("test_loss"))

    def score(self, metrics: tuple[str, ...], labels: Labels, encoded: list[int | float]) -> dict[str, float]:
        """Score the predictions against labels.

        Args:
            metrics: Names of metrics.
            labels: Labels of the task.
            encoded: Label of each row: a class id, or a number for regression.

        Returns:
            Metrics by name, and `loss` if it was computed.
        """
        loss = {} if self.loss is None else {"loss": self.loss}
        return loss | score_logits(metrics, labels, self.logits, np.asarray(encoded))

    def to_frame(self, labels: Labels, examples: Examples) -> pd.DataFrame:
        """Build a table with a row for each example.

        Args:
            labels: Labels of the task.
            examples: Examples in the order of the predictions.

        Returns:
            Table with the columns `row`, `label` (if the examples have labels), `prediction`, and for classification
            `scores`: the class probabilities in the order of `labels.names`. For rows with a logit that is not finite,
            the prediction is missing, and the probabilities are NaN.
        """
        finite = _find_finite_rows(self.logits)
        columns: dict[str, Any] = {"row": range(len(self.logits))}
        missing = math.nan if labels.names is None else None
        if examples.labels is not None:
            columns["label"] = [labels.decode(value) for value in examples.encode_labels(labels)]
        columns["prediction"] = [
            labels.decode(value) if is_finite else missing
            for value, is_finite in zip(predict_labels(self.logits, labels), finite, strict=True)
        ]
        if labels.names is not None:
            columns["scores"] = list(_softmax(np.where(finite[:, None], self.logits, math.nan)))
        return pd.DataFrame(columns)


def order_by_length(dataset: Dataset) -> np.ndarray:
    """Return the indices (rows,) that sort tokenized rows from the longest to the shortest.

    Batches of rows with similar lengths need less padding: 26 instead of 46 tokens per row of SST-2 in batches of 32.
    """
    # The longest rows come first, so if batches do not fit into memory, prediction fails at the first batch.
    return np.argsort(-np.asarray(count_tokens(dataset)), kind="stable")


def extract_logits(outputs: object) -> np.ndarray:
    """Extract the logits from a model's outputs."""
    # Encoder-decoders such as BART return a tuple with hidden states after the logits.
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)


def score_logits(metrics: tuple[str, ...], labels: Labels, logits: np.ndarray, encoded: np.ndarray) -> dict[str, float]:
    """Score logits against labels.

    Args:
        metrics: Names of metrics.
        labels: Labels of the task.
        logits: Logits (rows, classes), or predicted numbers (rows, 1) for regression.
        encoded: Label of each row: class ids (rows,), or numbers (rows,) for regression.

    Returns:
        Metrics by name; all NaN if a logit is not finite, as after a training that diverged.
    """
    if not _find_finite_rows(logits).all():
        return dict.fromkeys(metrics, math.nan)
    return compute_metrics(metrics, encoded, predict_labels(logits, labels), classes=labels.num_labels)


def predict_labels(logits: np.ndarray, labels: Labels) -> np.ndarray:
    """Return class ids (rows,) for logits (rows, classes), or numbers (rows,) for a regression's logits (rows, 1)."""
    return logits.argmax(axis=1) if labels.names is not None else logits[:, 0]


def _find_finite_rows(logits: np.ndarray) -> np.ndarray:
    """Return a mask (rows,) of the rows whose logits (rows, classes) are all finite. Only these have a prediction."""
    # `argmax` returns the position of a NaN, so a row of NaN would count as a prediction of the first class.
    return np.asarray(np.isfinite(logits).all(axis=1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    # In float16, probabilities would have three digits, and rows of many classes would not sum to 1.
    logits = logits.astype(np.float64)
    # Subtracting the maximum changes no probability and prevents an overflow in exp.
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
