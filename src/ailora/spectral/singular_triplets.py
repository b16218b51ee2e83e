"""Singular triplets from one band of a spectrum, and certificates of their accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor


class Band(StrEnum):
    """End of a singular spectrum: the `r` largest (principal) or the `r` smallest (minor) values.

    Examples:
        >>> [band.value for band in Band]
        ['principal', 'minor']
    """

    PRINCIPAL = "principal"
    MINOR = "minor"


@dataclass(frozen=True)
class Certificate:
    """Accuracy of computed triplets, measured by multiplying the weight with the singular vectors.

    A prime denotes the transpose.

    Attributes:
        method: Name of the method that computed the triplets.
        residual: Largest `|W v - s u|` or `|W' u - s v|` over the triplets, relative to W's Frobenius norm.
        orthogonality: Largest absolute entry of `U' U - I` and `Vh Vh' - I`.
        bound: Upper limit of `residual` and `orthogonality`. Triplets above the limit are not certified.
        gap: Distance from the band to the next singular value outside it, relative to W's Frobenius norm. None if
            unknown.
    """

    method: str
    residual: float
    orthogonality: float
    bound: float
    gap: float | None

    @property
    def subspace_error(self) -> float:
        """Estimated upper limit of the sine of the angle to the true subspaces: residual / gap (Wedin's theorem).

        For minor triplets, the estimate is far too large: their residuals point in directions of large singular values,
        which are much farther away than the gap. If the band ends inside a cluster of equal singular values, the
        estimate is infinite: the subspace is not unique, and only the triplets are certified. It is also infinite if
        the gap is unknown.
        """
        return self.residual / self.gap if self.gap else math.inf


@dataclass(frozen=True)
class Triplets:
    """Singular triplets of a matrix `W` (out, in), or of each matrix in a batch: `W Vh' = U diag(S)`.

    A prime denotes the transpose.

    Attributes:
        U: Left singular vectors, (..., out, rank), orthonormal columns.
        S: Singular values, (..., rank), descending for principal and for minor triplets.
        Vh: Right singular vectors, (..., rank, in), orthonormal rows.
        certificate: Accuracy of the triplets, the worst over a batch. None for uncertified triplets.

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
        """Return the triplets with signs for which `sum(u**3) + sum(v**3) >= 0` in each pair `u, v`."""
        # A singular pair is defined up to a common sign. Sums of cubes are symmetric in u and v, so a matrix and its
        # transpose get equal signs. They are also smooth, so rounding does not flip a sign.
        skewness = self.U.pow(3).sum(dim=-2) + self.Vh.pow(3).sum(dim=-1)
        sign = torch.where(skewness < 0, -1.0, 1.0).to(self.U.dtype)
        return replace(self, U=self.U * sign[..., None, :], Vh=self.Vh * sign[..., :, None])

    def to(self, target: torch.dtype | torch.device) -> Triplets:
        """Convert the triplets to a dtype or a device, as contiguous tensors."""
        return Triplets(*(x.to(target).contiguous() for x in (self.U, self.S, self.Vh)), certificate=self.certificate)
