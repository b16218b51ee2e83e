"""The bootstrap over seeds and examples, from the predictions that runs keep."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ailora.recipes.evaluation.classification_metrics import METRICS
from ailora.studies.conditions import Grid
from ailora.studies.method_results import Measured, report_split
from ailora.studies.statistics import Interval, bootstrap_difference
from ailora.studies.trial_storage import Trial

_RESAMPLES = 500


def resampled_difference(ours: Measured, baseline: Measured, grid: Grid) -> Interval | None:
    """The difference of two methods at their best rates, over seeds and examples; None: predictions are not kept."""
    split, metric = report_split(grid, ours.group), grid.metric_of(ours.group)
    if metric not in METRICS:
        return None
    seeds = sorted(ours.at_best.keys() & baseline.at_best.keys())
    mine, theirs = ([_predictions(m.at_best[seed], split) for seed in seeds] for m in (ours, baseline))
    if not seeds or any(frame is None for frame in [*mine, *theirs]):
        return None
    frames: list[pd.DataFrame] = [frame for frame in [*mine, *theirs] if frame is not None]
    if not all(frame["label"].equals(frames[0]["label"]) for frame in frames):
        return None
    columns = [frames[0]["label"].to_numpy(), *(frame["prediction"].to_numpy() for frame in frames)]
    truth, *coded = _coded(columns, metric)
    classes = 1 if METRICS[metric].regression else len(frames[0]["scores"].iloc[0])
    score, half = partial(_score, metric, classes), len(seeds)
    with warnings.catch_warnings():
        # scikit-learn warns of every resample without a rare class.
        warnings.simplefilter("ignore")
        return bootstrap_difference(
            np.stack(coded[:half]), np.stack(coded[half:]), truth, metric=score, resamples=_RESAMPLES
        )


def _coded(columns: Sequence[np.ndarray], metric: str) -> list[np.ndarray]:
    """Labels and predictions as numbers, or as ids of classes in the order of `Labels`: F1 is that of the second."""
    if METRICS[metric].regression:
        return [column.astype(float) for column in columns]
    names = {name for column in columns for name in column}
    try:
        ordered = sorted(names, key=int)
    except ValueError:
        ordered = sorted(names)
    ids = {name: number for number, name in enumerate(ordered)}
    return [np.array([ids[name] for name in column], dtype=int) for column in columns]


def _score(metric: str, classes: int, labels: np.ndarray, predictions: np.ndarray) -> float:
    return METRICS[metric].score(labels, predictions, classes)


def _predictions(trial: Trial, split: str) -> pd.DataFrame | None:
    assert trial.outcome is not None
    file = Path(trial.outcome["folder"]) / "predictions.parquet"
    if not file.is_file():
        return None
    frame = pd.read_parquet(file)
    own = frame.loc[frame["split"] == split].reset_index(drop=True)
    return None if own.empty else own
