"""Block Golub-Kahan-Lanczos: the leading singular triplets of a linear map that can be applied both ways.

Golub, Luk, Overton (1981), "A block Lanczos method for computing the singular values and corresponding singular
vectors of a matrix"; full reorthogonalization as in PROPACK. One basis of each side grows by a block a step; the small
projected matrix gives Ritz triplets, and its last block row their residuals without touching the map again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: Residuals of Ritz triplets below this multiple of machine precision, relative to the largest value, are rounding.
_ROUNDING = 4.0


class NotConvergedError(ArithmeticError):
    """An iteration did not reach its tolerance; the caller takes another method."""


@dataclass(frozen=True)
class LinearMap:
    """A matrix (out, in), or a batch of such matrices, known by its products.

    Attributes:
        shape: (..., out, in).
        apply: (..., in, k) -> (..., out, k).
        adjoint: (..., out, k) -> (..., in, k), the product with the transpose.
        like: any tensor with the dtype and the device of the products.
    """

    shape: torch.Size
    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    like: Tensor


@dataclass(frozen=True)
class Ritz:
    """Approximate leading triplets, more of them than were asked for; orthonormal bases, values descending."""

    U: Float[Tensor, "*batch out k"]
    S: Float[Tensor, "*batch k"]
    V: Float[Tensor, "*batch in_ k"]


def orthonormalize(Y: Tensor, against: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns that extend an orthonormal basis to the span of `Y`.

    Twice is enough (Kahan, Parlett), with a QR after each pass, so that columns of a zero `Y` become fresh orthonormal
    directions instead of copies of old ones.

    Args:
        Y: (..., n, b).
        against: the basis, (..., n, k).

    Returns:
        The new columns Q (..., n, b), and the coefficients (..., k + b, b) of `Y` in `[against, Q]`.
    """
    first = against.mT @ Y
    Q, R = torch.linalg.qr(Y - against @ first)
    second = against.mT @ Q
    Q, correction = torch.linalg.qr(Q - against @ second)
    return Q, torch.cat([first + second @ R, correction @ R], dim=-2)


@dataclass
class _Basis:
    """Orthonormal columns that grow in place; the buffer is never copied."""

    buffer: Tensor
    size: int = 0

    @property
    def columns(self) -> Tensor:
        return self.buffer[..., : self.size]

    def extend(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Append the part of `Y` that is new; the new block and the coefficients of `Y`, as `orthonormalize`."""
        Q, coefficients = orthonormalize(Y, self.columns)
        self.buffer[..., self.size : self.size + Q.shape[-1]] = Q
        self.size += Q.shape[-1]
        return Q, coefficients


def leading_triplets(
    linear_map: LinearMap, rank: int, *, generator: torch.Generator, tolerance: float, max_basis: int
) -> Ritz:
    """The `rank` leading triplets of a linear map, and as many Ritz triplets behind them as a block holds.

    Stops when every wanted residual is below `tolerance` times the gap at the cut (then, by Wedin's theorem, the
    subspaces are within about `tolerance`), or at the level of rounding, where the cut lies inside a cluster.

    Args:
        linear_map: the map.
        rank: how many triplets are wanted.
        generator: draws the starting block, on the CPU.
        tolerance: of the wanted subspaces.
        max_basis: the largest basis, at most min(out, in).

    Raises:
        NotConvergedError: the basis is full and the residuals are not small enough.
    """
    *batch, out, in_ = linear_map.shape
    like = linear_map.like
    block = min(max(rank, 8), 64, max_basis)
    steps = max_basis // block
    left = _Basis(like.new_empty(*batch, out, steps * block))
    right = _Basis(like.new_empty(*batch, in_, steps * block))
    core = like.new_zeros(*batch, steps * block, steps * block)
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
            found = _converged(core[..., :size, :size], overflow, rank, tolerance=tolerance)
            if found is not None:
                P, S, Qh = found
                kept = min(rank + block, size)
                basis = right.buffer[..., :size]
                return Ritz(left.columns @ P[..., :kept].to(like), S[..., :kept], basis @ Qh[..., :kept, :].mT.to(like))
    raise NotConvergedError(f"{rank} triplets of a map {tuple(linear_map.shape)} need a basis of over {max_basis}")


def _is_checked(step: int) -> bool:
    """Every step at first, then ever more seldom: the projected problem grows with the cube of the basis."""
    return step < 10 or (step < 20 and step % 2 == 1) or step % 4 == 3


def _converged(core: Tensor, overflow: Tensor, rank: int, *, tolerance: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """The SVD of the projected matrix, if its first `rank` triplets are good enough, else None.

    The residual of a Ritz triplet is what its left vector's last block sends out of the right basis.
    """
    P, S, Qh = torch.linalg.svd(core.double())
    residuals = (overflow.double() @ P[..., -overflow.shape[-1] :, :rank]).norm(dim=-2).amax(dim=-1)
    gap = S[..., rank - 1] - S[..., rank]
    rounding = _ROUNDING * torch.finfo(core.dtype).eps * S[..., 0]
    return (P, S, Qh) if (residuals <= torch.maximum(tolerance * gap, rounding)).all() else None
