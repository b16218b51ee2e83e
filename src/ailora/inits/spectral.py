"""Inits from the spectrum of the weight."""

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
from ailora.spectral import Band, cached_svd

#: Smallest singular value that factors are made of, relative to the root mean square of the weight's singular values.
#: Where `A` and `B` of a direction are both zero, both gradients vanish and it never trains.
_MIN_SINGULAR_VALUE_RATIO = 1e-4


class Size(StrEnum):
    """How long the factors of a spectral init are.

    `singular` splits the singular values evenly (the paper's equation); `unit` gives every direction the row norm of
    plain LoRA's A, so that the start tolerates plain LoRA's learning rate.
    """

    SINGULAR = "singular"
    UNIT = "unit"


@dataclass(frozen=True)
class Spectral(Init):
    """Start from one band of the weight's own spectrum.

    With the band's triplets `U, S, Vh` and size `singular`: `B = U (S/s)^1/2`, `A = (S/s)^1/2 Vh`, so that `s B A` is
    the part of W in the band (AILoRA, arXiv 2510.08034; PiSSA, arXiv 2404.02948; MiLoRA, arXiv 2406.09044). Negligible
    singular values are replaced by a small one (`Factors.floored` counts them): in the anchored form any start is
    exact, and in the residual form what is added is subtracted.
    """

    band: Band
    size: Size = Size.SINGULAR
    anchored: ClassVar[bool] = True

    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        triplets = cached_svd(weight, rank, self.band)
        if self.size is Size.UNIT:
            return Factors(A=triplets.Vh * KAIMING_ROW_NORM, B=triplets.U * KAIMING_ROW_NORM)
        size = torch.linalg.vector_norm(weight.to(triplets.S.dtype), dim=(-2, -1), keepdim=True)[..., 0]
        least = _MIN_SINGULAR_VALUE_RATIO * size / math.sqrt(min(weight.shape[-2:]))
        # A weight that is zero throughout gives no scale: take plain LoRA's.
        least = torch.where(least > 0, least, KAIMING_ROW_NORM**2 * scaling)
        root = (triplets.S.clamp_min(least) / scaling).sqrt()
        floored = (least > triplets.S).sum(dim=-1)
        return Factors(A=triplets.Vh * root[..., :, None], B=triplets.U * root[..., None, :], floored=floored)

    def to_dict(self) -> dict[str, str]:
        return {"init": self.band.value, "size": self.size.value}
