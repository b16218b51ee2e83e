"""Bootstrap over seeds and examples, from the stored predictions of runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ailora.recipes.evaluation.classification_metrics import METRICS
from ailora.studies.method_results import MethodResult
from ailora.studies.statistics import Interval, bootstrap_difference
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import TrialResult

_N_RESAMPLES = 500


def bootstrap_predictions(ours: MethodResult, baseline: MethodResult, design: StudyDesign) -> Interval | None:
    """Bootstrap the difference of two methods at their best rates.

    Returns:
        The difference with its interval; None if a run's predictions are not stored, or belong to other rows than
        those of another run.
    """
    split, metric = design.report_split(ours.condition), design.metric(ours.condition)
    seeds = sorted(ours.at_best.keys() & baseline.at_best.keys())
    if metric not in METRICS or not seeds:
        return None
    runs = [result.at_best[seed] for result in (ours, baseline) for seed in seeds]
    frames = [frame for run in runs if (frame := _read_predictions(run, split)) is not None]
    if len(frames) < len(runs) or not all(frame["label"].equals(frames[0]["label"]) for frame in frames):
        return None
    columns = [frames[0]["label"].to_numpy(), *(frame["prediction"].to_numpy() for frame in frames)]
    labels, *predictions = _encode(columns, metric)
    n_classes = 1 if METRICS[metric].regression else len(frames[0]["scores"].iloc[0])
    with warnings.catch_warnings():
        # scikit-learn warns of every resample without a rare class.
        warnings.simplefilter("ignore")
        return bootstrap_difference(
            np.stack(predictions[: len(seeds)]),
            np.stack(predictions[len(seeds) :]),
            labels,
            metric=lambda labels, predictions: METRICS[metric].score(labels, predictions, n_classes),
            n_resamples=_N_RESAMPLES,
        )


def _encode(columns: Sequence[np.ndarray], metric: str) -> list[np.ndarray]:
    """Encode labels and predictions as numbers, or as ids of classes in the order of `Labels`: F1 is of the second."""
    if METRICS[metric].regression:
        return [column.astype(float) for column in columns]
    names = {name for column in columns for name in column}
    try:
        ordered = sorted(names, key=int)
    except ValueError:
        ordered = sorted(names)
    ids = {name: number for number, name in enumerate(ordered)}
    return [np.array([ids[name] for name in column], dtype=int) for column in columns]


def _read_predictions(run: TrialResult, split: str) -> pd.DataFrame | None:
    if run.folder is None or not (file := Path(run.folder) / "predictions.parquet").is_file():
        return None
    frame = pd.read_parquet(file)
    of_split = frame.loc[frame["split"] == split].reset_index(drop=True)
    return None if of_split.empty else of_split
