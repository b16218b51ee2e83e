"""Direction profiles: the energy of an update over all singular directions of the weight."""

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
    """Full singular value decomposition of a weight, in float64, with k = min(out, in).

    Attributes:
        U: left singular vectors (out, k).
        values: singular values (k,), descending.
        Vh: right singular vectors (k, in).
    """

    U: Float[Tensor, "out k"]
    values: Float[Tensor, " k"]
    Vh: Float[Tensor, "k in_"]

    @classmethod
    def from_weight(cls, weight: Float[Tensor, "out in_"]) -> SingularDirections:
        """Decompose a weight (out, in) of any floating dtype."""
        return cls(*torch.linalg.svd(weight.double(), full_matrices=False))


def direction_profile(update: WeightUpdate, directions: SingularDirections, rank: int) -> Iterator[Row]:
    """Measure the distribution of an update's energy over the singular directions of the weight.

    The directions are binned: the r principal, the middle in bins of equal width, the r minor, and the directions
    outside of the spectrum, which a non-square weight maps to zero or does not reach.

    Args:
        update: `dW` (out, in), or a gradient.
        directions: singular directions of `W`, before the update.
        rank: width r of the principal and the minor bin, at most half of the spectrum.

    Yields:
        A row for each side and bin: `side`, `left` (output) or `right` (input); `band`, `principal`, `middle`, `minor`
        or `outside`; `start` and `stop`, the range of singular indices; `share`, the energy in the bin over `|dW|^2`,
        NaN for a zero update; `chance`, the share of an update in random directions, width / out or width / in.
    """
    count = len(directions.values)
    bins = _cut_into_bins(count, min(rank, count // 2))
    sides = {
        "left": (update.left_energies(directions.U), directions.U.shape[0]),
        "right": (update.right_energies(directions.Vh), directions.Vh.shape[1]),
    }
    # The vectors of the smaller dimension are a whole basis, and hold all energy of the update.
    total = max(float(energies.sum()) for energies, _ in sides.values()) or float("nan")
    for side, (energies, dimension) in sides.items():
        for band, start, stop in bins:
            share = float(energies[start:stop].sum()) / total
            yield _bin_row(side, band, start, stop, share=share, dimension=dimension)
        if dimension > count:
            # A difference, which rounding can take below zero. max(NaN, 0.0) is NaN, max(0.0, NaN) would be 0.
            share = max(1 - float(energies.sum()) / total, 0.0)
            yield _bin_row(side, "outside", count, dimension, share=share, dimension=dimension)


def enrichment(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Compute the geometric mean of `share / chance` over layers; random directions give 1.

    Args:
        rows: rows of `direction_profile` for the same bin of several layers; rows without energy are ignored.

    Returns:
        The mean and the ends of its 95 % t-interval. The ends are NaN for fewer than two layers, the mean for none.
    """
    # Averaged as logarithms: a factor of 2 and a factor of 1/2 cancel.
    shares, chances = rows["share"].to_numpy(dtype=float), rows["chance"].to_numpy(dtype=float)
    logs = np.log(shares[shares > 0] / chances[shares > 0])
    low, high = mean_interval(logs)
    return math.exp(logs.mean()) if len(logs) else math.nan, math.exp(low), math.exp(high)


def _cut_into_bins(count: int, rank: int) -> list[tuple[str, int, int]]:
    """Return the bins (band, start, stop) of the indices 0 .. count, without empty middle bins."""
    edges = [rank + round(i * (count - 2 * rank) / _MIDDLE_BINS) for i in range(_MIDDLE_BINS + 1)]
    middle = [("middle", start, stop) for start, stop in pairwise(edges) if stop > start]
    ends = [("principal", 0, rank), ("minor", count - rank, count)] if rank else []
    return [*ends[:1], *middle, *ends[1:]]


def _bin_row(side: str, band: str, start: int, stop: int, *, share: float, dimension: int) -> Row:
    columns = {"side": side, "band": band, "start": start, "stop": stop}
    return {**columns, "share": share, "chance": (stop - start) / dimension}
