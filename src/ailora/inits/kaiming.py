"""Init of plain LoRA: Kaiming-uniform A, zero B."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.inits.init import Factors, Init

#: Norm of a row of plain LoRA's A in the limit of a large `in`, since entries are uniform in +-1/sqrt(in).
KAIMING_ROW_NORM = 1 / math.sqrt(3)


@dataclass(frozen=True)
class Kaiming(Init):
    """Init of plain LoRA (arXiv 2106.09685): A uniform in +-1/sqrt(in), B zero.

    Examples:
        >>> import torch
        >>> factors = Kaiming().factors(torch.ones(6, 4), 2, scaling=1.0, generator=torch.Generator())
        >>> tuple(factors.A.shape), float(factors.B.norm())
        ((2, 4), 0.0)
    """

    needs_anchor: ClassVar[bool] = False

    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        del scaling  # B is zero, whatever the scaling
        out, in_ = weight.shape[-2:]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # This is PEFT's distribution, Kaiming-uniform with a = sqrt(5). PEFT's own function is not used, because it
        # draws from torch's global generator.
        A = (torch.rand(rank, in_, generator=generator, dtype=dtype, device="cpu") * 2 - 1) / math.sqrt(in_)
        return Factors(A=A.to(weight.device), B=torch.zeros(out, rank, dtype=dtype, device=weight.device))

    def to_dict(self) -> dict[str, str]:
        return {"init": "lora"}
