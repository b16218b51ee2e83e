"""Block Golub-Kahan-Lanczos: the leading singular triplets of a linear map, from products with it and its adjoint.

Golub, Luk, Overton (1981), "A block Lanczos method for computing the singular values and corresponding singular vectors
of a matrix"; full reorthogonalization as in PROPACK. Each step adds a block of vectors to a left and to a right basis.
The SVD of the small projected matrix gives Ritz triplets. Their residuals follow from the last block of rows of the
left singular vectors of this matrix, without another product with the map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: Rounding error in the residual of a Ritz triplet, as a multiple of machine precision times the largest singular
#: value.
_ROUNDING_IN_EPS = 4.0


class NotConvergedError(ArithmeticError):
    """The iteration did not reach its tolerance. Callers fall back to the exact method."""


@dataclass(frozen=True)
class LinearMap:
    """Matrix (out, in), or batch of matrices, given by products with vectors.

    Attributes:
        shape: Shape (..., out, in).
        apply: Product with the matrix, (..., in, k) -> (..., out, k).
        adjoint: Product with the transpose, (..., out, k) -> (..., in, k).
        like: Tensor with the dtype and the device of the products.
    """

    shape: torch.Size
    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    like: Tensor


@dataclass(frozen=True)
class RitzTriplets:
    """Approximate leading triplets, at least as many as requested. Vectors are orthonormal, and values descend."""

    U: Float[Tensor, "*batch out k"]
    S: Float[Tensor, "*batch k"]
    V: Float[Tensor, "*batch in_ k"]


def orthonormalize(Y: Tensor, against: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge an orthonormal basis so that it also spans `Y`.

    Args:
        Y: Vectors (..., n, b).
        against: Orthonormal basis (..., n, k) to extend.

    Returns:
        New orthonormal columns Q (..., n, b), and the coefficients (..., k + b, b) of `Y` in `[against, Q]`.
    """
    first = against.mT @ Y
    Q, R = torch.linalg.qr(Y - against @ first)
    # Two passes are enough (Kahan, Parlett). If `Y` adds nothing to the basis, the first QR returns arbitrary
    # directions, and the second pass makes these orthogonal to the basis too.
    second = against.mT @ Q
    Q, correction = torch.linalg.qr(Q - against @ second)
    return Q, torch.cat([first + second @ R, correction @ R], dim=-2)


@dataclass
class _Basis:
    """Orthonormal columns in a buffer of fixed size, because concatenation would copy the basis in every step."""

    buffer: Tensor
    size: int = 0

    @property
    def columns(self) -> Tensor:
        return self.buffer[..., : self.size]

    def extend(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Append the part of `Y` outside the span, and return the new columns with the coefficients of `Y`."""
        Q, coefficients = orthonormalize(Y, self.columns)
        self.buffer[..., self.size : self.size + Q.shape[-1]] = Q
        self.size += Q.shape[-1]
        return Q, coefficients


def leading_triplets(
    linear_map: LinearMap, rank: int, *, generator: torch.Generator, tolerance: float, max_basis: int
) -> RitzTriplets:
    """Compute the `rank` leading triplets of a linear map, and up to a block of further Ritz triplets.

    The iteration stops when the residuals of the leading triplets are below `tolerance` times the gap between
    the singular values `rank` and `rank + 1`. By Wedin's theorem, the error of the subspaces is then about `tolerance`.
    If the two values are nearly equal, the iteration stops when the residuals reach the level of rounding errors.

    Args:
        linear_map: Map (out, in) to decompose.
        rank: Number of leading triplets.
        generator: Source of the starting block, on the CPU.
        tolerance: Largest sine of the angle to the true subspaces.
        max_basis: Largest number of columns in a basis, at most min(out, in).

    Returns:
        At least `rank` triplets, in the dtype and on the device of the map's products.

    Raises:
        NotConvergedError: The residuals are still too large when the bases have `max_basis` columns.
    """
    *batch, out, in_ = linear_map.shape
    like = linear_map.like
    # At least 8 columns, because products with fewer columns are memory-bound.
    block = min(max(rank, 8), 64, max_basis)
    steps = max_basis // block
    left = _Basis(like.new_empty(*batch, out, steps * block))
    right = _Basis(like.new_empty(*batch, in_, steps * block))
    projected = like.new_zeros(*batch, steps * block, steps * block)
    # Drawn in float64 on the CPU, so that every device and dtype starts from the same block.
    start = torch.randn(in_, block, generator=generator, dtype=torch.float64, device="cpu").to(like)
    V = right.extend(start.expand(*batch, in_, block))[0]
    for step in range(steps):
        Q, coefficients = left.extend(linear_map.apply(V))
        size = left.size
        projected[..., :size, size - block : size] = coefficients
        Z = linear_map.adjoint(Q)
        if step < steps - 1:
            V, coefficients = right.extend(Z)
            # Coordinates in the new columns `V` suffice: the norms of the residuals do not change.
            outside = coefficients[..., -block:, :]
        else:
            outside = Z - right.columns @ (right.columns.mT @ Z)
        if size > rank and (step == steps - 1 or _is_convergence_tested(step)):
            projected_svd = _converged_svd(projected[..., :size, :size], outside, rank, tolerance=tolerance)
            if projected_svd is not None:
                P, S, Qh = projected_svd
                k = min(rank + block, size)
                # Leave out the block that this step may have appended.
                right_columns = right.buffer[..., :size]
                U, V = left.columns @ P[..., :k].to(like), right_columns @ Qh[..., :k, :].mT.to(like)
                return RitzTriplets(U, S[..., :k], V)
    raise NotConvergedError(
        f"{rank} triplets of a map {tuple(linear_map.shape)} need a basis of more than {max_basis} columns"
    )


def _is_convergence_tested(step: int) -> bool:
    # A test costs O(size^3), so tests become rarer as the basis grows.
    return step < 10 or (step < 20 and step % 2 == 1) or step % 4 == 3


def _converged_svd(
    projected: Tensor, outside: Tensor, rank: int, *, tolerance: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the SVD of the projected matrix, or None if any of the first `rank` triplets has not converged."""
    P, S, Qh = torch.linalg.svd(projected.double())
    # The adjoint maps all blocks of the left basis except the last into the right basis. The part of the last block's
    # image outside the right basis gives the residuals.
    residuals = (outside.double() @ P[..., -outside.shape[-1] :, :rank]).norm(dim=-2).amax(dim=-1)
    gap = S[..., rank - 1] - S[..., rank]
    rounding = _ROUNDING_IN_EPS * torch.finfo(projected.dtype).eps * S[..., 0]
    return (P, S, Qh) if (residuals <= torch.maximum(tolerance * gap, rounding)).all() else None
