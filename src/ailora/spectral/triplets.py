"""Singular triplets and the end of the spectrum they come from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor


class Band(StrEnum):
    """One end of a singular spectrum: the `r` largest (principal) or the `r` smallest (minor) values."""

    PRINCIPAL = "principal"
    MINOR = "minor"


@dataclass(frozen=True)
class Triplets:
    """`rank` singular triplets of a matrix `W` (out, in): `W Vh.T = U diag(S)`.

    Attributes:
        U: left singular vectors, (out, rank), orthonormal columns.
        S: singular values, (rank,), descending in both bands.
        Vh: right singular vectors, (rank, in), orthonormal rows.
    """

    U: Float[Tensor, "out rank"]
    S: Float[Tensor, " rank"]
    Vh: Float[Tensor, "rank in_"]

    def with_fixed_signs(self) -> Triplets:
        """The same triplets with `sum(u**3) + sum(v**3) >= 0` for each pair `u, v`.

        A singular pair is defined up to a common sign. This rule treats `u` and `v` alike, so that a matrix and
        its transpose agree, and it changes smoothly with the vectors, so that rounding does not flip it.
        """
        skew = self.U.pow(3).sum(dim=0) + self.Vh.pow(3).sum(dim=1)
        sign = torch.where(skew < 0, -1.0, 1.0).to(self.U.dtype)
        return Triplets(self.U * sign, self.S, self.Vh * sign[:, None])
