"""Classification and regression metrics, computed with scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sk


@dataclass(frozen=True)
class Metric:
    """Metric of predictions against labels. Larger values are better.

    Attributes:
        score: Function of labels (rows,), predictions (rows,) and the number of classes. Labels and predictions are
            class ids, or real numbers for a regression metric.
        regression: Whether labels and predictions are real numbers.
    """

    score: Callable[[np.ndarray, np.ndarray, int], float]
    regression: bool = False


def _compute_f1(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
    # GLUE scores MRPC and QQP by the F1 of class 1, which is the "binary" average.
    return sk.f1_score(labels, predictions, average="binary" if classes == 2 else "macro")


def _ignore_num_classes(function: Callable[..., float]) -> Callable[[np.ndarray, np.ndarray, int], float]:
    return lambda labels, predictions, _classes: function(labels, predictions)


def _make_correlation_score(
    function: Callable[..., tuple[float, float]],
) -> Callable[[np.ndarray, np.ndarray, int], float]:
    def score(labels: np.ndarray, predictions: np.ndarray, _classes: int) -> float:
        # The correlation is undefined for fewer than two rows and for constant predictions, which say nothing about
        # the labels: the score is 0, as without correlation, so that a run with such predictions has a result.
        if len(labels) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            value = function(labels, predictions)[0]
        return 0.0 if np.isnan(value) else value

    return score


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_ignore_num_classes(sk.accuracy_score)),
    "f1": Metric(_compute_f1),
    "matthews_correlation": Metric(_ignore_num_classes(sk.matthews_corrcoef)),
    "pearson": Metric(_make_correlation_score(stats.pearsonr), regression=True),
    "spearman": Metric(_make_correlation_score(stats.spearmanr), regression=True),
}


def compute_metrics(
    names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray, *, classes: int
) -> dict[str, float]:
    """Score predictions against labels.

    Args:
        names: Metrics to compute, keys of `METRICS`.
        labels: Class ids (rows,), or real numbers (rows,) for regression.
        predictions: Class ids (rows,), or real numbers (rows,) for regression.
        classes: Number of classes; 1 for regression.

    Returns:
        Score by name of the metric.
    """
    return {name: float(METRICS[name].score(labels, predictions, classes)) for name in names}
