"""Block Golub-Kahan-Lanczos: the leading singular triplets of a linear map and its adjoint.

Golub, Luk, Overton (1981), "A block Lanczos method for computing the singular values and corresponding singular vectors
of a matrix"; full reorthogonalization as in PROPACK. Each step adds a block of vectors to a left and to a right basis.
The SVD of the small projected matrix gives Ritz triplets. The last block row of the matrix gives their residuals,
without a further product of the map.
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
    """A method misses its tolerance. Callers fall back to the exact method."""


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
class Ritz:
    """Approximate leading triplets, at least the requested number: orthonormal bases, values descending."""

    U: Float[Tensor, "*batch out k"]
    S: Float[Tensor, "*batch k"]
    V: Float[Tensor, "*batch in_ k"]


def orthonormalize(Y: Tensor, against: Tensor) -> tuple[Tensor, Tensor]:
    """Extend an orthonormal basis to the span of `Y`.

    Args:
        Y: Vectors (..., n, b).
        against: Orthonormal basis (..., n, k) to extend.

    Returns:
        New orthonormal columns Q (..., n, b), and the coefficients (..., k + b, b) of `Y` in `[against, Q]`.
    """
    first = against.mT @ Y
    Q, R = torch.linalg.qr(Y - against @ first)
    # Two passes are enough (Kahan, Parlett). With a QR after each pass, the columns of a zero `Y` become new
    # orthonormal directions instead of copies of basis vectors.
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
) -> Ritz:
    """Compute the `rank` leading triplets of a linear map, and up to a block of further Ritz triplets.

    The iteration stops when the residuals of the leading triplets are below `tolerance` times the gap at the cut. By
    Wedin's theorem, the error of the subspaces is then about `tolerance`. If the cut is inside a cluster of values, the
    iteration stops when the residuals reach the level of rounding errors.

    Args:
        linear_map: Map (out, in) to decompose.
        rank: Number of leading triplets.
        generator: Source of the starting block, on the CPU.
        tolerance: Largest sine of the angle to the true subspaces.
        max_basis: Largest number of columns in a basis, at most min(out, in).

    Returns:
        At least `rank` triplets, in the dtype and on the device of the map's products.

    Raises:
        NotConvergedError: The residuals are too large with full bases.
    """
    *batch, out, in_ = linear_map.shape
    like = linear_map.like
    # At least 8 columns, because memory limits thinner products.
    block = min(max(rank, 8), 64, max_basis)
    steps = max_basis // block
    left = _Basis(like.new_empty(*batch, out, steps * block))
    right = _Basis(like.new_empty(*batch, in_, steps * block))
    core = like.new_zeros(*batch, steps * block, steps * block)
    # Drawn in float64 on the CPU, so that every device and dtype starts from the same block.
    start = torch.randn(in_, block, generator=generator, dtype=torch.float64).to(like)
    V = right.extend(start.expand(*batch, in_, block))[0]
    for step in range(steps):
        Q, coefficients = left.extend(linear_map.apply(V))
        size = left.size
        core[..., :size, size - block : size] = coefficients
        Z = linear_map.adjoint(Q)
        if step < steps - 1:
            V, coefficients = right.extend(Z)
            overflow = coefficients[..., -block:, :]
        else:
            overflow = Z - right.columns @ (right.columns.mT @ Z)
        if size > rank and (step == steps - 1 or _is_checked(step)):
            projected_svd = _converged_svd(core[..., :size, :size], overflow, rank, tolerance=tolerance)
            if projected_svd is not None:
                P, S, Qh = projected_svd
                k = min(rank + block, size)
                basis = right.buffer[..., :size]
                return Ritz(left.columns @ P[..., :k].to(like), S[..., :k], basis @ Qh[..., :k, :].mT.to(like))
    raise NotConvergedError(f"{rank} triplets of a map {tuple(linear_map.shape)} need a basis of over {max_basis}")


def _is_checked(step: int) -> bool:
    # Testing for convergence costs the cube of the basis size, so that tests become rarer as the basis grows.
    return step < 10 or (step < 20 and step % 2 == 1) or step % 4 == 3


def _converged_svd(
    core: Tensor, overflow: Tensor, rank: int, *, tolerance: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the SVD of the projected matrix, or None if any of the first `rank` triplets has not converged."""
    P, S, Qh = torch.linalg.svd(core.double())
    # Only the last block of a left Ritz vector has a product outside the right basis: the residual of the triplet.
    residuals = (overflow.double() @ P[..., -overflow.shape[-1] :, :rank]).norm(dim=-2).amax(dim=-1)
    gap = S[..., rank - 1] - S[..., rank]
    rounding = _ROUNDING_IN_EPS * torch.finfo(core.dtype).eps * S[..., 0]
    return (P, S, Qh) if (residuals <= torch.maximum(tolerance * gap, rounding)).all() else None
