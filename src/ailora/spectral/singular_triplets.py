"""Singular triplets, the end of the spectrum they come from, and how well they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor


class Band(StrEnum):
    """One end of a singular spectrum: the `r` largest (principal) or the `r` smallest (minor) values."""

    PRINCIPAL = "principal"
    MINOR = "minor"


@dataclass(frozen=True)
class Certificate:
    """What was checked of a set of triplets, after it was computed, with products of the weight itself.

    Attributes:
        method: what computed the triplets.
        residual: the largest of `|W v - s u|` and `|W' u - s v|` over the triplets, relative to W's Frobenius norm.
        orthogonality: the largest entry of `U' U - I` and `Vh Vh' - I`.
        bound: what neither of the two exceeds.
        gap: distance of the band from the next singular value, relative to W's Frobenius norm; None where unknown.
    """

    method: str
    residual: float
    orthogonality: float
    bound: float
    gap: float | None

    @property
    def subspace_error(self) -> float:
        """Upper estimate of the sine of the angle to the true subspaces (Wedin): residual / gap.

        Far above the truth for minor triplets, whose residuals lie along directions that are easy to tell apart.
        Infinite where the cut falls inside a cluster of equal values: the subspace is not unique there, and what is
        certified are the triplets.
        """
        return self.residual / self.gap if self.gap else math.inf


@dataclass(frozen=True)
class Triplets:
    """`rank` singular triplets of a matrix `W` (out, in), or of each matrix of a batch: `W Vh' = U diag(S)`.

    Attributes:
        U: left singular vectors, (..., out, rank), orthonormal columns.
        S: singular values, (..., rank), descending in both bands.
        Vh: right singular vectors, (..., rank, in), orthonormal rows.
        certificate: how well they hold, the worst over a batch; None until it was checked.
    """

    U: Float[Tensor, "*batch out rank"]
    S: Float[Tensor, "*batch rank"]
    Vh: Float[Tensor, "*batch rank in_"]
    certificate: Certificate | None = None

    def with_fixed_signs(self) -> Triplets:
        """The same triplets with `sum(u**3) + sum(v**3) >= 0` for each pair `u, v`.

        A singular pair is defined up to a common sign. This rule treats `u` and `v` alike, so that a matrix and
        its transpose agree, and it changes smoothly with the vectors, so that rounding does not flip it.
        """
        skew = self.U.pow(3).sum(dim=-2) + self.Vh.pow(3).sum(dim=-1)
        sign = torch.where(skew < 0, -1.0, 1.0).to(self.U.dtype)
        return replace(self, U=self.U * sign[..., None, :], Vh=self.Vh * sign[..., :, None])

    def to(self, target: torch.dtype | torch.device) -> Triplets:
        """The same triplets in another dtype or on another device, contiguous."""
        return Triplets(*(x.to(target).contiguous() for x in (self.U, self.S, self.Vh)), certificate=self.certificate)
