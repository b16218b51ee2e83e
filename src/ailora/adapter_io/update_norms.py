"""Norms, distances and singular values of updates `B A`, computed from the factors alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.adapter_io.projection_factors import ProjectionFactors


def compute_singular_values(B: Float[Tensor, "out r"], A: Float[Tensor, "r in_"]) -> Tensor:
    """Compute the singular values of `B A` without the product, from QR decompositions of both factors.

    Args:
        B: Factor (out, r).
        A: Factor (r, in).

    Returns:
        Singular values (r,) in float64, descending; fewer if `out` or `in` is smaller than r.
    """
    return torch.linalg.svdvals(_reduce_product(B, A))


def compute_norm(B: Float[Tensor, "out r"], A: Float[Tensor, "r in_"]) -> float:
    """Return the Frobenius norm `|B A|`."""
    return float(_reduce_product(B, A).norm())


def compute_distance(this: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Compute the Frobenius norm `|B1 A1 - B2 A2|` of the difference between two updates.

    Args:
        this: Factors `B1` (out, r1) and `A1` (r1, in).
        other: Factors `B2` (out, r2) and `A2` (r2, in).

    Returns:
        The norm, computed in float64.
    """
    (B1, A1), (B2, A2) = this, other
    # The difference is a product too: [B1, -B2] [A1; A2], of rank r1 + r2.
    B, A = torch.cat([B1.double(), -B2.double()], dim=1), torch.cat([A1.double(), A2.double()], dim=0)
    return compute_norm(B, A)


def approximate_product(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compute factors of a given rank with the product nearest to `B A` (Eckart and Young, 1936).

    The factors are computed by QR decompositions of `B` and `A`, and the SVD of an r x r matrix. Each new factor is
    scaled by the square roots of the singular values.

    Args:
        B: Factor (out, r).
        A: Factor (r, in).
        rank: Rank of the new factors. If `B A` has a smaller rank, the factors are padded with zeros.

    Returns:
        `B` (out, rank) and `A` (rank, in) in float64.
    """
    left, right = torch.linalg.qr(B.double()), torch.linalg.qr(A.double().mT)
    U, S, Vh = torch.linalg.svd(left.R @ right.R.mT)
    count = min(rank, S.shape[0])
    # With a square root in each factor, no factor overflows in half precision unless the product does.
    root = S[:count].sqrt()
    near_B = left.Q @ (U[:, :count] * root)
    near_A = (root[:, None] * Vh[:count]) @ right.Q.mT
    return pad_factors(near_B, near_A, rank)


def pad_factors(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Append zero columns to `B` and zero rows to `A` up to a rank. The product does not change."""
    missing = rank - A.shape[0]
    return torch.nn.functional.pad(B, (0, missing)), torch.nn.functional.pad(A, (0, 0, 0, missing))


def _reduce_product(B: Tensor, A: Tensor) -> Tensor:
    """Return `R_B R_A^T` from the QR decompositions of `B` and `A^T`. It has the same singular values as `B A`."""
    # Forming `B A` would take 128 MiB for a 4096 x 4096 weight in float64.
    left = torch.linalg.qr(B.double(), mode="r").R
    right = torch.linalg.qr(A.double().mT, mode="r").R
    return left @ right.mT


@dataclass(frozen=True)
class UpdateStats:
    """Norms and singular values of a planned adapter's update.

    Attributes:
        norm: `|dW|`, Frobenius norm of the update: `dW = s B A`, or `dW = s (B A - B0 A0)` with an anchor `B0 A0`.
        anchor_norm: `|s B0 A0|`. None without an anchor.
        moved_A: `|A - A0| / |A0|`. None without an anchor, or for a zero `A0`.
        moved_B: `|B - B0| / |B0|`. None without an anchor, or for a zero `B0`.
        singular_values: Singular values of `dW`, descending.
    """

    norm: float
    anchor_norm: float | None
    moved_A: float | None
    moved_B: float | None
    singular_values: tuple[float, ...]

    @property
    def stable_rank(self) -> float:
        """Stable rank `|dW|^2 / |dW|_2^2`, which estimates the number of dominant directions; 0 for a zero update."""
        largest = max(self.singular_values, default=0.0)
        return (self.norm / largest) ** 2 if largest > 0 else 0.0


def compute_update_stats(factors: ProjectionFactors) -> UpdateStats:
    """Compute the norms and singular values of an update from stored factors."""
    scaling = factors.planned.scaling
    values = (scaling * compute_singular_values(factors.B, factors.A)).tolist()
    # The Frobenius norm of a matrix is the norm of its singular values.
    norm = float(torch.tensor(values, dtype=torch.float64).norm())
    if not factors.has_anchor:
        return UpdateStats(norm, None, None, None, tuple(values))
    (A0, B0), (dA, dB) = factors.anchor, factors.deltas
    anchor_norm = scaling * compute_norm(B0, A0)
    return UpdateStats(norm, anchor_norm, _relative_norm(dA, A0), _relative_norm(dB, B0), tuple(values))


def _relative_norm(delta: Tensor, anchor: Tensor) -> float | None:
    # The squares of large entries would overflow in float32, and those of small entries would be zero.
    return float(delta.double().norm() / anchor.double().norm()) if anchor.any() else None


def root_mean_square(values: Iterable[float]) -> float:
    """Return the root mean square of numbers, or 0 without numbers."""
    squares = [value**2 for value in values]
    return (sum(squares) / len(squares)) ** 0.5 if squares else 0.0
