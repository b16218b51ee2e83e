"""Bootstrap over seeds and examples, from the stored predictions of runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ailora.errors import InputError
from ailora.recipes.data.labels import Labels
from ailora.recipes.evaluation.classification_metrics import METRICS
from ailora.recipes.run_folder import RunFolder
from ailora.studies.method_results import MethodResult
from ailora.studies.statistics import Interval, bootstrap_difference
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import TrialResult

#: Number of resamples. More would take too long: each resample calls the metric twice per seed, and a call of
#: scikit-learn takes 0.5 to 2 ms.
_N_RESAMPLES = 500
_log = logging.getLogger(__name__)


def bootstrap_score_difference(method: MethodResult, baseline: MethodResult, design: StudyDesign) -> Interval | None:
    """Bootstrap the difference in score, method minus baseline, at the best learning rate of each.

    Returns:
        The difference with its interval; None if the methods share no seed, or without comparable predictions; see
        `_SplitPredictions.read`.
    """
    split, metric = design.report_split(method.condition), design.metric(method.condition)
    seeds = sorted(method.at_best.keys() & baseline.at_best.keys())
    runs = [result.at_best[seed] for result in (method, baseline) for seed in seeds]
    split_predictions = _SplitPredictions.read(runs, split, metric)
    if split_predictions is None:
        return None
    with warnings.catch_warnings():
        # scikit-learn warns about every resample that lacks a rare class.
        warnings.simplefilter("ignore")
        return bootstrap_difference(
            split_predictions.predictions[: len(seeds)],
            split_predictions.predictions[len(seeds) :],
            split_predictions.labels,
            metric=split_predictions.score,
            n_resamples=_N_RESAMPLES,
        )


def score_resamples(runs: Sequence[TrialResult], split: str, metric: str, *, n_resamples: int) -> np.ndarray | None:
    """Score runs on bootstrap resamples of a split's examples. All runs share the resamples.

    Args:
        runs: Runs with stored predictions.
        split: Name of the split.
        metric: Name of the metric.
        n_resamples: Number of resamples.

    Returns:
        Scores, (resamples, runs); None if there is no run, or without comparable predictions; see
        `_SplitPredictions.read`.
    """
    split_predictions = _SplitPredictions.read(runs, split, metric)
    if split_predictions is None:
        return None
    n_examples = len(split_predictions.labels)
    # With a fixed seed, all reports of the same runs show the same numbers.
    draws = np.random.default_rng(0).integers(n_examples, size=(n_resamples, n_examples))
    if (score_confusion := METRICS[metric].score_confusion) is not None:
        confusions = (split_predictions.count_confusions(index, draws) for index in range(len(runs)))
        return np.stack([score_confusion(counts, split_predictions.n_classes) for counts in confusions], axis=1)
    scores = [
        [split_predictions.score(split_predictions.labels[rows], predictions[rows]) for rows in draws]
        for predictions in split_predictions.predictions
    ]
    return np.array(scores).T


@dataclass(frozen=True)
class _SplitPredictions:
    """Stored predictions of runs on the examples of a split.

    Attributes:
        labels: Class ids, or numbers for regression, (examples,).
        predictions: Class ids, or numbers for regression, (runs, examples).
        metric: Name of the metric.
        n_classes: Number of classes that the models predict; 1 for regression.
    """

    labels: np.ndarray
    predictions: np.ndarray
    metric: str
    n_classes: int

    @classmethod
    def read(cls, runs: Sequence[TrialResult], split: str, metric: str) -> _SplitPredictions | None:
        """Read the predictions of runs.

        Returns None if there is no run, if the predictions or classes of a run cannot be read, if a row has no
        prediction, if runs differ in examples or classes, or if the metric is not computed from predictions.
        """
        if metric not in METRICS or not runs:
            return None
        frames: list[pd.DataFrame] = []
        for run in runs:
            frame = _read_predictions(run, split)
            if frame is None or (frames and not frame["label"].equals(frames[0]["label"])):
                return None
            # A run that lacks a prediction has no score, and neither has a resample that draws this row.
            if frame["prediction"].isna().to_numpy().any():
                return None
            frames.append(frame)
        try:
            classes = _read_classes(runs, regression=METRICS[metric].regression)
            labels = _encode(frames[0]["label"].to_numpy(), classes, runs[0])
            predictions = [
                _encode(frame["prediction"].to_numpy(), classes, run) for frame, run in zip(frames, runs, strict=True)
            ]
        except InputError as error:
            _log.warning("%s; these predictions are not resampled", error)
            return None
        return cls(labels, np.stack(predictions), metric, classes.num_labels)

    def count_confusions(self, index: int, draws: np.ndarray) -> np.ndarray:
        """Compute the confusion matrices of a run on resamples.

        Args:
            index: Index of the run.
            draws: Indices of the drawn examples, (resamples, examples).

        Returns:
            Confusion matrices with labels in rows, (resamples, classes, classes).
        """
        # Encoding each pair of label and prediction as one number lets `bincount` fill a whole matrix in one call.
        pairs = self.labels * self.n_classes + self.predictions[index]
        counts = [np.bincount(pairs[rows], minlength=self.n_classes**2) for rows in draws]
        return np.stack(counts).reshape(-1, self.n_classes, self.n_classes)

    def score(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """Score predictions against labels, both (examples,)."""
        return METRICS[self.metric].score(labels, predictions, self.n_classes)


def _encode(values: np.ndarray, classes: Labels, run: TrialResult) -> np.ndarray:
    """Encode labels or predictions of a run: as floats for regression, else as class ids.

    Raises:
        InputError: A value is not a number, or not one of the classes.
    """
    try:
        if classes.names is None:
            return values.astype(float)
        ids = {name: number for number, name in enumerate(classes.names)}
        return np.array([ids[name] for name in values], dtype=int)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{run.folder}: the predictions do not fit the classes ({error!r})") from None


def _read_classes(runs: Sequence[TrialResult], *, regression: bool) -> Labels:
    """Read the common classes of runs from their results.

    The classes cannot be derived from predictions, which may lack a class. Their order matters too: with two classes,
    F1 is that of the second class.

    Raises:
        InputError: The result of a run cannot be read, or the runs have different classes.
    """
    classes = None
    for run in runs:
        assert run.folder is not None
        run_classes = Labels.from_result(RunFolder(run.folder).read_result().get("labels"))
        if (run_classes.names is None) != regression or (classes is not None and run_classes != classes):
            raise InputError(f"{run.folder}: the classes in result.json do not fit those of the other runs")
        classes = run_classes
    assert classes is not None
    return classes


def _read_predictions(run: TrialResult, split: str) -> pd.DataFrame | None:
    if run.folder is None:
        return None
    try:
        frame = RunFolder(run.folder).read_predictions(["split", "label", "prediction"])
    except InputError as error:
        # Scores are stored apart from predictions, so a damaged file must not prevent the comparison of scores.
        _log.warning("%s; these predictions are not resampled", error)
        return None
    if frame is None or (rows := frame.loc[frame["split"] == split].reset_index(drop=True)).empty:
        return None
    return rows
