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
        score: (labels, predictions, classes) -> score; labels and predictions (rows,), class ids or numbers.
        regression: whether labels are numbers instead of classes.
    """

    score: Callable[[np.ndarray, np.ndarray, int], float]
    regression: bool = False


def _f1(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
    """F1 of class 1 where the task has two classes (as GLUE), else the mean over classes."""
    return sk.f1_score(labels, predictions, average="binary" if classes == 2 else "macro")


def _of_classes(function: Callable[..., float]) -> Callable[[np.ndarray, np.ndarray, int], float]:
    return lambda labels, predictions, classes: function(labels, predictions)


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray, int], float]:
    """A correlation that is 0 where it is undefined: a constant prediction tells nothing about the label."""

    def score(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
        if len(labels) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            value = function(labels, predictions)[0]
        return 0.0 if np.isnan(value) else value

    return score


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_of_classes(sk.accuracy_score)),
    "f1": Metric(_f1),
    "matthews_correlation": Metric(_of_classes(sk.matthews_corrcoef)),
    "pearson": Metric(_correlation(stats.pearsonr), regression=True),
    "spearman": Metric(_correlation(stats.spearmanr), regression=True),
}


def compute(names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> dict[str, float]:
    """The named metrics of `predictions` (rows,) against `labels` (rows,) in a task of so many classes."""
    return {name: float(METRICS[name].score(labels, predictions, classes)) for name in names}
