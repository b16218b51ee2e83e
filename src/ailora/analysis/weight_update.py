"""The update `dW` of one projection: a matrix, or the product of an adapter's factors, which is never formed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.adapter_io.update_norms import spectrum


class WeightUpdate(Protocol):
    """The change of one projection by fine-tuning, in float64."""

    def singular_values(self) -> Float[Tensor, " k"]:
        """Compute the singular values, descending; of a product only as many as its rank."""
        ...

    def onto_left(self, U: Float[Tensor, "out r"]) -> float:
        """Compute `|U' dW|` in the Frobenius norm: the part in the span of left singular vectors."""
        ...

    def onto_right(self, Vh: Float[Tensor, "r in_"]) -> float:
        """Compute `|dW Vh'|` in the Frobenius norm: the part in the span of right singular vectors."""
        ...

    def dense(self) -> Float[Tensor, "out in_"]:
        """Return the matrix."""
        ...


@dataclass(frozen=True)
class DenseUpdate:
    """The update of full fine-tuning.

    Attributes:
        matrix: `W_after - W_before`.
    """

    matrix: Float[Tensor, "out in_"]

    def singular_values(self) -> Tensor:
        return torch.linalg.svdvals(self.matrix)

    def onto_left(self, U: Tensor) -> float:
        return float((U.double().mT @ self.matrix).norm())

    def onto_right(self, Vh: Tensor) -> float:
        return float((self.matrix @ Vh.double().mT).norm())

    def dense(self) -> Tensor:
        return self.matrix


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of an adapter, `B A`.

    Attributes:
        B: (out, r), multiplied by the scaling.
        A: (r, in).
    """

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in_"]

    def singular_values(self) -> Tensor:
        return spectrum(self.B, self.A)[: min(self.B.shape[0], self.A.shape[1])]

    def onto_left(self, U: Tensor) -> float:
        # |U' B A| = |U' B R'| with A' = Q R: the columns of Q are orthonormal.
        R = torch.linalg.qr(self.A.mT, mode="r").R
        return float((U.double().mT @ self.B @ R.mT).norm())

    def onto_right(self, Vh: Tensor) -> float:
        R = torch.linalg.qr(self.B, mode="r").R
        return float((R @ self.A @ Vh.double().mT).norm())

    def dense(self) -> Tensor:
        return self.B @ self.A
