"""Metrics by name, computed by scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sk


@dataclass(frozen=True)
class Metric:
    """A score of predictions against labels; larger is better.

    Attributes:
        score: (labels, predictions) -> score; both (rows,), class ids or numbers.
        regression: whether labels are numbers instead of classes.
    """

    score: Callable[[np.ndarray, np.ndarray], float]
    regression: bool = False


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1 where there are two classes (as GLUE), else the mean over classes."""
    binary = max(labels.max(), predictions.max()) <= 1
    return sk.f1_score(labels, predictions, average="binary" if binary else "macro")


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray], float]:
    """A correlation that is 0 where it is undefined: a constant prediction tells nothing about the label."""

    def score(labels: np.ndarray, predictions: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            value = function(labels, predictions)[0]
        return 0.0 if np.isnan(value) else value

    return score


METRICS: dict[str, Metric] = {
    "accuracy": Metric(sk.accuracy_score),
    "f1": Metric(_f1),
    "matthews_correlation": Metric(sk.matthews_corrcoef),
    "pearson": Metric(_correlation(stats.pearsonr), regression=True),
    "spearman": Metric(_correlation(stats.spearmanr), regression=True),
}


def compute(names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The named metrics of `predictions` (rows,) against `labels` (rows,)."""
    return {name: float(METRICS[name].score(labels, predictions)) for name in names}
