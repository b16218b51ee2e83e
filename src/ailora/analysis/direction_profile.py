"""Direction profiles: which singular directions of a weight hold the energy of an update, over the whole spectrum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ailora.analysis.table_ops import Row, mean_interval
from ailora.analysis.weight_update import WeightUpdate

#: Bins of equal width between the principal and the minor directions: enough to see a trend, wide enough to be smooth.
_MIDDLE_BINS = 8


@dataclass(frozen=True)
class SingularDirections:
    """All singular directions of a weight, in float64.

    Attributes:
        U: left (out, k) with k = min(out, in).
        values: (k,), descending.
        Vh: right (k, in).
    """

    U: Float[Tensor, "out k"]
    values: Float[Tensor, " k"]
    Vh: Float[Tensor, "k in_"]

    @classmethod
    def from_weight(cls, weight: Float[Tensor, "out in_"]) -> SingularDirections:
        """Decompose a weight."""
        return cls(*torch.linalg.svd(weight.double(), full_matrices=False))


def direction_profile(update: WeightUpdate, directions: SingularDirections, rank: int) -> Iterator[Row]:
    """Measure how the energy of an update is spread over the singular directions of the weight.

    The directions are cut into bins: the r principal ones, the middle in bins of equal width, the r minor ones, and
    those outside, which a weight that is not square maps to zero or does not reach.

    Args:
        update: `dW` (out, in), or a gradient.
        directions: of `W`, before the update.
        rank: r, of the principal and the minor bin; cut where the two would overlap.

    Yields:
        For either side and each bin: `side`, `left` (output) or `right` (input); `band`, `principal`, `middle`, `minor`
        or `outside`; `start` and `stop`, the singular indices; `share`, the energy in the bin over `|dW|^2` (NaN of no
        update); and `chance`, the share that an update in uniformly random directions has: width / out or width / in.
    """
    count = len(directions.values)
    bins = _bins(count, min(rank, count // 2))
    sides = {
        "left": (update.left_energies(directions.U), directions.U.shape[0]),
        "right": (update.right_energies(directions.Vh), directions.Vh.shape[1]),
    }
    total = float(update.singular_values().square().sum()) or float("nan")
    for side, (energies, dimension) in sides.items():
        for band, start, stop in bins:
            share = float(energies[start:stop].sum()) / total
            yield _row(side, band, start, stop, share=share, dimension=dimension)
        if dimension > count:
            # By subtraction, which rounding can take below zero; NaN as the first argument stays.
            share = max(1 - float(energies.sum()) / total, 0.0)
            yield _row(side, "outside", count, dimension, share=share, dimension=dimension)


def enrichment(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Average `share / chance` over layers, geometrically: 1 is what random directions give.

    Args:
        rows: of `direction_profile`, one bin of each layer; rows without energy are left out.

    Returns:
        The mean, and the ends of its 95 % t-interval (NaN of fewer than two layers); NaN of none.
    """
    shares, chances = rows["share"].to_numpy(dtype=float), rows["chance"].to_numpy(dtype=float)
    logs = np.log(shares[shares > 0] / chances[shares > 0])
    low, high = mean_interval(logs)
    return math.exp(logs.mean()) if len(logs) else math.nan, math.exp(low), math.exp(high)


def _bins(count: int, rank: int) -> list[tuple[str, int, int]]:
    """Cut the indices 0 .. count into bands; bins of the middle that would be empty are left out."""
    edges = [rank + round(i * (count - 2 * rank) / _MIDDLE_BINS) for i in range(_MIDDLE_BINS + 1)]
    middle = [("middle", start, stop) for start, stop in pairwise(edges) if stop > start]
    ends = [("principal", 0, rank), ("minor", count - rank, count)] if rank else []
    return [*ends[:1], *middle, *ends[1:]]


def _row(side: str, band: str, start: int, stop: int, *, share: float, dimension: int) -> Row:
    columns = {"side": side, "band": band, "start": start, "stop": stop}
    return {**columns, "share": share, "chance": (stop - start) / dimension}
