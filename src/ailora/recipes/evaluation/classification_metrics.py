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
        score_confusion: Function of confusion matrices (..., classes, classes), with labels in rows, and the number of
            classes. Returns the value of `score` for each matrix, in one call for many resamples. None for a
            regression metric.
    """

    score: Callable[[np.ndarray, np.ndarray, int], float]
    regression: bool = False
    score_confusion: Callable[[np.ndarray, int], np.ndarray] | None = None


def _compute_f1(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
    # GLUE scores MRPC and QQP by the F1 of class 1, which is the "binary" average.
    return sk.f1_score(labels, predictions, average="binary" if classes == 2 else "macro")


# A bootstrap scores thousands of resamples from their confusion matrices, because a call of scikit-learn takes 0.5 to
# 2 ms, mostly for checking its inputs.
def _score_accuracy(confusion: np.ndarray, _classes: int) -> np.ndarray:
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))


def _score_f1(confusion: np.ndarray, classes: int) -> np.ndarray:
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    occurrences = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    scores = 2 * correct / np.maximum(occurrences, 1)
    if classes == 2:
        return scores[..., 1]
    # scikit-learn averages over the classes that occur among labels or predictions.
    return scores.sum(axis=-1) / (occurrences > 0).sum(axis=-1)


def _score_matthews(confusion: np.ndarray, _classes: int) -> np.ndarray:
    # The product of variances grows with the fourth power of the number of rows: int64 overflows at about 78,000 rows.
    confusion = confusion.astype(np.float64)
    n, correct = confusion.sum(axis=(-2, -1)), np.trace(confusion, axis1=-2, axis2=-1)
    label_counts, prediction_counts = confusion.sum(axis=-1), confusion.sum(axis=-2)
    # Neither is divided by a power of n, because these powers cancel in the quotient.
    covariance = correct * n - (label_counts * prediction_counts).sum(axis=-1)
    variance_product = (n**2 - (label_counts**2).sum(axis=-1)) * (n**2 - (prediction_counts**2).sum(axis=-1))
    return np.where(variance_product > 0, covariance / np.sqrt(np.maximum(variance_product, 1)), 0.0)


def _ignore_num_classes(function: Callable[..., float]) -> Callable[[np.ndarray, np.ndarray, int], float]:
    return lambda labels, predictions, _classes: function(labels, predictions)


def _make_correlation_score(
    function: Callable[..., tuple[float, float]],
) -> Callable[[np.ndarray, np.ndarray, int], float]:
    def score(labels: np.ndarray, predictions: np.ndarray, _classes: int) -> float:
        # The correlation is undefined for fewer than two rows and for constant predictions. The score is then 0, as for
        # uncorrelated predictions, so that the run still has a result.
        if len(labels) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            value = function(labels, predictions)[0]
        return 0.0 if np.isnan(value) else value

    return score


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_ignore_num_classes(sk.accuracy_score), score_confusion=_score_accuracy),
    "f1": Metric(_compute_f1, score_confusion=_score_f1),
    "matthews_correlation": Metric(_ignore_num_classes(sk.matthews_corrcoef), score_confusion=_score_matthews),
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
