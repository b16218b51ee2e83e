"""Direction profiles: the distribution of an update's energy over the singular directions of the weight."""

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

#: Number of bins of equal width between the principal and the minor directions. More bins would give a noisy curve.
_MIDDLE_BINS = 8
#: Largest magnitude of the ends of an interval in logarithms. `math.exp` overflows at 710, and charts need room beyond
#: the ends.
_MAX_LOG = 300.0


@dataclass(frozen=True)
class SingularDirections:
    """Full singular value decomposition of a weight, in float64, with k = min(out, in).

    Attributes:
        U: Left singular vectors (out, k).
        values: Singular values (k,), descending.
        Vh: Right singular vectors (k, in).
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

    The bins are the r principal directions, bins of equal width in the middle, the r minor directions, and for a
    non-square weight the directions outside the spectrum: those that the weight maps to zero or cannot produce. The
    energy of an output direction u is `|u' dW|^2`, that of an input direction v is `|dW v|^2`.

    Args:
        update: `dW` (out, in), or a gradient.
        directions: Singular directions of the base weight `W`.
        rank: Width r of the principal bin and of the minor bin. Limited to half of the spectrum.

    Yields:
        Row for each side and bin:

        - `side`: `left` (output) or `right` (input).
        - `band`: `principal`, `middle`, `minor` or `outside`.
        - `start`, `stop`: range of singular indices in the bin. `outside` continues after the last singular index.
        - `share`: energy in the bin relative to `|dW|^2`, NaN for a zero update.
        - `chance`: share expected for an update in random directions, width / out or width / in.
    """
    count = len(directions.values)
    bins = _cut_into_bins(count, min(rank, count // 2))
    sides = {
        "left": (update.left_energies(directions.U), directions.U.shape[0]),
        "right": (update.right_energies(directions.Vh), directions.Vh.shape[1]),
    }
    # On the side with the smaller dimension, the vectors are a complete basis, so their energies sum to the total.
    total = max(float(energies.sum()) for energies, _ in sides.values()) or float("nan")
    for side, (energies, dimension) in sides.items():
        for band, start, stop in bins:
            share = float(energies[start:stop].sum()) / total
            yield _bin_row(side, band, start, stop, share=share, dimension=dimension)
        if dimension > count:
            # Rounding can make the difference negative. max(NaN, 0.0) is NaN, but max(0.0, NaN) would be 0.
            share = max(1 - float(energies.sum()) / total, 0.0)
            yield _bin_row(side, "outside", count, dimension, share=share, dimension=dimension)


def enrichment(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Compute the geometric mean of `share / chance` over layers. Random directions give 1.

    Args:
        rows: Rows of `direction_profile` for the same bin in several layers. Rows with a zero share are ignored.

    Returns:
        Mean, and the ends of its 95 % t-interval. For fewer than two layers with energy, the ends are NaN; without any,
        the mean is NaN too.
    """
    # Average logarithms, so that factors of 2 and 1/2 cancel.
    shares, chances = rows["share"].to_numpy(dtype=float), rows["chance"].to_numpy(dtype=float)
    logs = np.log(shares[shares > 0] / chances[shares > 0])
    mean = float(logs.mean()) if len(logs) else math.nan
    low, high = np.clip(mean_interval(logs), -_MAX_LOG, _MAX_LOG)
    return math.exp(mean), math.exp(low), math.exp(high)


def _cut_into_bins(count: int, rank: int) -> list[tuple[str, int, int]]:
    """Cut the indices 0 to count - 1 into bins (band, start, stop), without empty bins."""
    edges = [rank + round(i * (count - 2 * rank) / _MIDDLE_BINS) for i in range(_MIDDLE_BINS + 1)]
    middle = [("middle", start, stop) for start, stop in pairwise(edges)]
    bins = [("principal", 0, rank), *middle, ("minor", count - rank, count)]
    return [(band, start, stop) for band, start, stop in bins if stop > start]


def _bin_row(side: str, band: str, start: int, stop: int, *, share: float, dimension: int) -> Row:
    columns = {"side": side, "band": band, "start": start, "stop": stop}
    return {**columns, "share": share, "chance": (stop - start) / dimension}
