"""What one measures on adapters: sizes and spectra of products, without ever forming the product."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.adapter_io.adapter_checkpoint import ProjectionFactors


def spectrum(B: Float[Tensor, "out r"], A: Float[Tensor, "r in_"]) -> Tensor:
    """The singular values (r,) of `B A`, descending, in float64: those of `R_B R_A'`, from QR of both factors."""
    return torch.linalg.svdvals(_core(B, A))


def size(B: Float[Tensor, "out r"], A: Float[Tensor, "r in_"]) -> float:
    """`|B A|` in the Frobenius norm."""
    return float(_core(B, A).norm())


def difference(this: tuple[Tensor, Tensor], that: tuple[Tensor, Tensor]) -> float:
    """`|B A - B' A'|` in the Frobenius norm, of two pairs `(B, A)` of factors that map alike."""
    (B, A), (other_B, other_A) = this, that
    return size(torch.cat([B.double(), -other_B.double()], dim=1), torch.cat([A.double(), other_A.double()], dim=0))


def best_approximation(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the given rank whose product is nearest to `B A` (Eckart, Young), in float64, evenly split.

    From QR of both factors and the SVD of a small matrix; zeros fill up where `B A` has no such rank.
    """
    left, right = torch.linalg.qr(B.double()), torch.linalg.qr(A.double().mT)
    U, S, Vh = torch.linalg.svd(left.R @ right.R.mT)
    kept = min(rank, S.shape[0])
    root = S[:kept].sqrt()
    near_B = left.Q @ (U[:, :kept] * root)
    near_A = (root[:, None] * Vh[:kept]) @ right.Q.mT
    return padded(near_B, near_A, rank)


def padded(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with zero columns and rows up to a rank."""
    missing = rank - A.shape[0]
    return torch.nn.functional.pad(B, (0, missing)), torch.nn.functional.pad(A, (0, 0, 0, missing))


def _core(B: Tensor, A: Tensor) -> Tensor:
    left = torch.linalg.qr(B.double(), mode="r").R
    right = torch.linalg.qr(A.double().mT, mode="r").R
    return left @ right.mT


@dataclass(frozen=True)
class Measured:
    """One adapter in numbers.

    Attributes:
        update: `|dW|`, the Frobenius norm of what the adapter adds to the weight.
        start: `|s B0 A0|`; None without an anchor.
        moved_A: `|dA| / |A0|`, how far `A` has moved from its anchor; None without one, or where it is zero.
        moved_B: `|dB| / |B0|`; None without one.
        values: singular values of `dW`, descending.
    """

    update: float
    start: float | None
    moved_A: float | None
    moved_B: float | None
    values: tuple[float, ...]

    @property
    def stable_rank(self) -> float:
        """`|dW|^2 / |dW|_2^2`, how many directions carry the update; 0 for no update."""
        return self.update**2 / self.values[0] ** 2 if self.values and self.values[0] > 0 else 0.0


def measured(role: ProjectionFactors) -> Measured:
    """The numbers of one planned adapter, from its factors in the file."""
    scaling = role.planned.scaling
    values = (scaling * spectrum(role.B, role.A)).tolist()
    update = float(torch.tensor(values, dtype=torch.float64).norm())
    if not role.anchored:
        return Measured(update, None, None, None, tuple(values))
    (A0, B0), (dA, dB) = role.anchor, role.deltas
    return Measured(update, scaling * size(B0, A0), _share(dA, A0), _share(dB, B0), tuple(values))


def _share(moved: Tensor, start: Tensor) -> float | None:
    return float(moved.norm() / start.norm()) if start.any() else None


def root_mean_square(values: Iterable[float]) -> float:
    """The root of the mean of the squares; 0 of nothing."""
    squares = [value**2 for value in values]
    return (sum(squares) / len(squares)) ** 0.5 if squares else 0.0
