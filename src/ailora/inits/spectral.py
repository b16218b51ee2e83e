"""Init from a band of the weight's own spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.inits.init import Factors, Init
from ailora.inits.kaiming import KAIMING_ROW_NORM
from ailora.spectral import Band, cached_svd, frobenius_norm

#: Smallest singular value in factors, relative to the root mean square of the weight's singular values. Without this
#: bound, the direction of a zero singular value would be zero in `A` and in `B`, have no gradient and never train. In
#: trained weights, only zeros and their rounding errors are below the bound.
_MIN_SINGULAR_VALUE_RATIO = 1e-4


class Size(StrEnum):
    """Size of the factors of a spectral init.

    `singular` splits each singular value evenly between `A` and `B` (the paper's equation). `unit` gives every
    direction the row norm of plain LoRA's A, so that plain LoRA's learning rate can be used.
    """

    SINGULAR = "singular"
    UNIT = "unit"


@dataclass(frozen=True)
class Spectral(Init):
    """Init from a band of the weight's own spectrum.

    With the band's triplets `U, S, Vh` and size `singular`: `B = U (S/s)^1/2`, `A = (S/s)^1/2 Vh`, so that `s B A` is
    the part of W in the band (AILoRA, arXiv 2510.08034; PiSSA, arXiv 2404.02948; MiLoRA, arXiv 2406.09044). Negligible
    singular values are clamped to a small value; `Factors.floored` counts them.

    Attributes:
        band: Decomposed band, principal or minor.
        size: Size of the factors, `singular` or `unit`; see `Size`.

    Examples:
        >>> import torch
        >>> weight = torch.diag(torch.tensor([4.0, 1.0]))
        >>> factors = Spectral(Band.PRINCIPAL).factors(weight, 1, scaling=1.0, generator=torch.Generator())
        >>> torch.allclose(factors.B @ factors.A, torch.diag(torch.tensor([4.0, 0.0])), atol=1e-5)
        True
    """

    band: Band
    size: Size = Size.SINGULAR
    needs_anchor: ClassVar[bool] = True

    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        del generator  # the decomposition is deterministic
        triplets = cached_svd(weight, rank, self.band)
        if self.size is Size.UNIT:
            # No singular value is used, so none is clamped. Callers split batches and need a count for each matrix.
            floored = torch.zeros_like(triplets.S[..., 0], dtype=torch.int64)
            return Factors(A=triplets.Vh * KAIMING_ROW_NORM, B=triplets.U * KAIMING_ROW_NORM, floored=floored)
        dtype = triplets.S.dtype
        # The second conversion is necessary, because norms outside the range of float32 are returned in float64.
        min_value = min_singular_value(weight.to(dtype)).to(dtype)[..., None]
        # A zero weight has no scale, so its factors get the scale of plain LoRA.
        min_value = torch.where(min_value > 0, min_value, KAIMING_ROW_NORM**2 * scaling)
        # Clamping does not change the initial output: the anchored form is exact for any factors, and the residual form
        # subtracts the product of the clamped factors.
        root = (triplets.S.clamp_min(min_value) / scaling).sqrt()
        floored = (min_value > triplets.S).sum(dim=-1)
        return Factors(A=triplets.Vh * root[..., :, None], B=triplets.U * root[..., None, :], floored=floored)

    def to_dict(self) -> dict[str, str]:
        return {"init": self.band.value, "size": self.size.value}


def min_singular_value(weight: Float[Tensor, "*batch out in_"]) -> Float[Tensor, "*batch"]:
    """Return the value below which a singular value of a weight is negligible, 0 for a zero weight.

    Args:
        weight: Weight (out, in) in float32 or float64, or a batch (..., out, in).

    Returns:
        Values (...,).
    """
    return _MIN_SINGULAR_VALUE_RATIO * frobenius_norm(weight) / math.sqrt(min(weight.shape[-2:]))
