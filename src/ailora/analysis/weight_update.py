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
        """Return the singular values in descending order: min(out, in) values, or r for factors of a smaller rank r."""
        ...

    def left_energies(self, U: Float[Tensor, "out r"]) -> Float[Tensor, " r"]:
        """Return `|u' dW|^2` for each column `u` of `U`. The columns are orthonormal directions of the output."""
        ...

    def right_energies(self, Vh: Float[Tensor, "r in_"]) -> Float[Tensor, " r"]:
        """Return `|dW v|^2` for each row `v'` of `Vh`. The rows are orthonormal directions of the input."""
        ...

    def dense(self) -> Float[Tensor, "out in_"]:
        """Return the update as a matrix. For factors, every call computes the product."""
        ...


@dataclass(frozen=True)
class DenseUpdate:
    """Update stored as a matrix.

    Attributes:
        matrix: Update `W_after - W_before` (out, in) by full fine-tuning, or a gradient of the loss, which is analysed
            like an update, in float64.
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
    """Update `B A` by an adapter, stored as its factors.

    Attributes:
        B: Factor (out, r), multiplied by the scaling, in float64.
        A: Factor (r, in), in float64.
    """

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in_"]

    def singular_values(self) -> Tensor:
        return compute_singular_values(self.B, self.A)

    def left_energies(self, U: Tensor) -> Tensor:
        # With A' = Q R, |u' B A| = |u' B R'|, because the columns of Q are orthonormal. So B A need not be computed.
        R = torch.linalg.qr(self.A.mT, mode="r").R
        return (U.double().mT @ self.B @ R.mT).square().sum(dim=1)

    def right_energies(self, Vh: Tensor) -> Tensor:
        R = torch.linalg.qr(self.B, mode="r").R
        return (R @ self.A @ Vh.double().mT).square().sum(dim=0)

    def dense(self) -> Tensor:
        return self.B @ self.A
