"""What a model says about examples, and how good that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from transformers import Trainer

from ailora.recipes.data.classification_rows import Examples
from ailora.recipes.data.labels import Labels
from ailora.recipes.evaluation.classification_metrics import compute


@dataclass(frozen=True)
class Predictions:
    """A model's outputs for the rows of a split.

    Attributes:
        logits: (rows, classes), or (rows, 1) for regression.
        loss: mean loss over the rows; None where there are no labels.
    """

    logits: np.ndarray
    loss: float | None

    @classmethod
    def from_trainer(cls, trainer: Trainer, dataset: Any) -> Predictions:
        """Run a trainer's model over a tokenized data set."""
        output = trainer.predict(dataset)
        loss = (output.metrics or {}).get("test_loss")
        return cls(logits_from_output(output.predictions), loss)

    def scores(self, metrics: tuple[str, ...], labels: Labels, encoded: list[int | float]) -> dict[str, float]:
        """Loss and metrics against encoded labels."""
        loss = {} if self.loss is None else {"loss": self.loss}
        return loss | compute(
            metrics, np.asarray(encoded), predict_labels(self.logits, labels), classes=labels.num_labels
        )

    def frame(self, labels: Labels, examples: Examples) -> pd.DataFrame:
        """One row per example: its row number, label (where there is one), prediction and scores.

        Scores are probabilities of the classes in the order of the labels' names; regression has none.
        """
        decided = [labels.decode(value) for value in predict_labels(self.logits, labels)]
        columns: dict[str, Any] = {"row": range(len(decided))}
        if examples.labels is not None:
            columns["label"] = [labels.decode(value) for value in examples.encode_labels(labels)]
        columns["prediction"] = decided
        if labels.names is not None:
            columns["scores"] = list(_softmax(self.logits).astype(np.float64))
        return pd.DataFrame(columns)


def logits_from_output(outputs: Any) -> np.ndarray:
    """The logits among a model's outputs: some models return hidden states beside them."""
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)


def predict_labels(logits: np.ndarray, labels: Labels) -> np.ndarray:
    """Class ids (rows,) from logits (rows, classes), or the predicted numbers from (rows, 1)."""
    return logits.argmax(axis=1) if labels.names is not None else logits[:, 0]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
