"""Claims of speed, put to the test: a run that is scheduled to end where it seemed to be enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ailora.studies.comparison import compare
from ailora.studies.conditions import Cell, Grid
from ailora.studies.trial_storage import Trial


def confirmations(trials: Sequence[Trial], grid: Grid) -> list[Cell]:
    """The runs that confirm, or refute, that a method reaches the baseline's final loss sooner.

    A loss in the middle of a schedule is one at a high learning rate: what counts is a schedule that ends there. For
    every method of which all seeds reach the loss before the end, these are runs of the median number of steps.

    Args:
        trials: of the study, all of them ended.
        grid: the study.
    """
    found = compare(trials, grid, bootstrap=False)
    cells = []
    for group, compared in found.compared.items():
        speed, best = compared.speed, found.measured[group].progress.best
        if speed is None or best is None:
            continue
        earlier = [one.step for one in speed.reached.values() if one.step is not None and one.step < one.last_step]
        if len(earlier) == len(speed.reached):
            enough = math.ceil(statistics.median(earlier))
            cells += [Cell(group, best, seed, enough) for seed in grid.config.seeds]
    return cells
