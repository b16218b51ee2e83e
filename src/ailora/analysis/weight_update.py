"""Weight updates `dW` of projections: matrices, or products of an adapter's factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.adapter_io.update_norms import compute_singular_values


class WeightUpdate(Protocol):
    """Change of a projection by fine-tuning, in float64."""

    def singular_values(self) -> Float[Tensor, " k"]:
        """Return the singular values, descending; k is min(out, in), or the rank of a product if smaller."""
        ...

    def left_energies(self, U: Float[Tensor, "out r"]) -> Float[Tensor, " r"]:
        """Return `|u' dW|^2` for each of r orthonormal directions of the output."""
        ...

    def right_energies(self, Vh: Float[Tensor, "r in_"]) -> Float[Tensor, " r"]:
        """Return `|dW v|^2` for each of r orthonormal directions of the input."""
        ...

    def dense(self) -> Float[Tensor, "out in_"]:
        """Return the update as a matrix, which a product forms anew."""
        ...


@dataclass(frozen=True)
class DenseUpdate:
    """An update held as a matrix.

    Attributes:
        matrix: `W_after - W_before` (out, in) of full fine-tuning, or a gradient, in float64.
    """

    matrix: Float[Tensor, "out in_"]

    def singular_values(self) -> Tensor:
        return torch.linalg.svdvals(self.matrix)

    def left_energies(self, U: Tensor) -> Tensor:
        return (U.double().mT @ self.matrix).square().sum(dim=1)

    def right_energies(self, Vh: Tensor) -> Tensor:
        return (self.matrix @ Vh.double().mT).square().sum(dim=0)

    def dense(self) -> Tensor:
        return self.matrix


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of an adapter, `B A`, measured on its factors.

    Attributes:
        B: factor (out, r), multiplied by the scaling, in float64.
        A: factor (r, in), in float64.
    """

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in_"]

    def singular_values(self) -> Tensor:
        # The factors may have a higher rank than the weight: further values are zero.
        return compute_singular_values(self.B, self.A)[: min(self.B.shape[0], self.A.shape[1])]

    def left_energies(self, U: Tensor) -> Tensor:
        # |u' B A| = |u' B R'| with A' = Q R, since the columns of Q are orthonormal: the product is never formed.
        R = torch.linalg.qr(self.A.mT, mode="r").R
        return (U.double().mT @ self.B @ R.mT).square().sum(dim=1)

    def right_energies(self, Vh: Tensor) -> Tensor:
        R = torch.linalg.qr(self.B, mode="r").R
        return (R @ self.A @ Vh.double().mT).square().sum(dim=0)

    def dense(self) -> Tensor:
        return self.B @ self.A
