"""Singular triplets of one band of a spectrum, and the certificate of their accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor


class Band(StrEnum):
    """One end of a singular spectrum: the `r` largest (principal) or the `r` smallest (minor) values.

    Examples:
        >>> [band.value for band in Band]
        ['principal', 'minor']
    """

    PRINCIPAL = "principal"
    MINOR = "minor"


@dataclass(frozen=True)
class Certificate:
    """Accuracy of computed triplets, measured with products of the weight itself.

    Attributes:
        method: Name of the method that computed the triplets.
        residual: Largest of `|W v - s u|` and `|W' u - s v|` over the triplets, relative to W's Frobenius norm.
        orthogonality: Largest absolute entry of `U' U - I` and `Vh Vh' - I`.
        bound: Upper bound of `residual` and of `orthogonality`.
        gap: Distance of the band from the next singular value, relative to W's Frobenius norm. None if unknown.
    """

    method: str
    residual: float
    orthogonality: float
    bound: float
    gap: float | None

    @property
    def subspace_error(self) -> float:
        """Upper estimate of the sine of the largest angle to the true subspaces: residual / gap (Wedin's theorem).

        The estimate is far above the truth for minor triplets, whose residuals lie along directions with large
        singular values, which are easy to tell apart. It is infinite if the cut falls inside a cluster of equal
        values: the subspace is not unique there, and the certificate holds for the triplets only.
        """
        return self.residual / self.gap if self.gap else math.inf


@dataclass(frozen=True)
class Triplets:
    """`rank` singular triplets of a matrix `W` (out, in), or of each matrix of a batch: `W Vh' = U diag(S)`.

    Attributes:
        U: Left singular vectors, (..., out, rank), orthonormal columns.
        S: Singular values, (..., rank), descending in both bands.
        Vh: Right singular vectors, (..., rank, in), orthonormal rows.
        certificate: Accuracy of the triplets, the worst over a batch. None before it is measured.

    Examples:
        >>> import torch
        >>> from ailora import truncated_svd
        >>> triplets = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, "principal")
        >>> tuple(triplets.U.shape), tuple(triplets.S.shape), tuple(triplets.Vh.shape)
        ((3, 2), (2,), (2, 3))
    """

    U: Float[Tensor, "*batch out rank"]
    S: Float[Tensor, "*batch rank"]
    Vh: Float[Tensor, "*batch rank in_"]
    certificate: Certificate | None = None

    def with_fixed_signs(self) -> Triplets:
        """Return the same triplets with `sum(u**3) + sum(v**3) >= 0` for each pair `u, v`."""
        # A singular pair is defined up to a common sign. Cubes treat u and v alike, so that a matrix and its transpose
        # agree, and change smoothly with the vectors, so that rounding does not flip the sign.
        skewness = self.U.pow(3).sum(dim=-2) + self.Vh.pow(3).sum(dim=-1)
        sign = torch.where(skewness < 0, -1.0, 1.0).to(self.U.dtype)
        return replace(self, U=self.U * sign[..., None, :], Vh=self.Vh * sign[..., :, None])

    def to(self, target: torch.dtype | torch.device) -> Triplets:
        """Return the same triplets in another dtype or on another device, contiguous."""
        return Triplets(*(x.to(target).contiguous() for x in (self.U, self.S, self.Vh)), certificate=self.certificate)
