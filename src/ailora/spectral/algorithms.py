"""Methods of `truncated_svd`. Each computes the triplets of a band, uncertified, or raises NotConvergedError.

Every method takes a weight (..., out, in) in float32 or float64, and returns at least `rank` triplets (u, s, v) in
float32 or float64, with singular values in descending order. The requested triplets are the first for the principal
band (largest singular values) and the last for the minor band (smallest). Further triplets give the gap between the
band and the next singular value. `truncated_svd` certifies the result. `docs/numerics.md` explains when each method is
chosen, how much it costs, and which other methods were rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from ailora.spectral.lanczos import LinearMap, NotConvergedError, leading_triplets, orthonormalize
from ailora.spectral.singular_triplets import Band, Triplets

#: Error of the subspaces (sine of the largest angle) at which an iteration stops. For comparison, LAPACK's float32 SVD
#: has an error of about 1e-5 on trained weights.
TOLERANCE = 1e-6
#: Error of the subspaces at which refinements stop. Each refinement reduces the error about fourfold.
_REFINED_TOLERANCE = 2e-5
_MAX_REFINEMENTS = 6
#: Number of the AILoRA paper on arXiv. Any other seed works as well.
_SEED = 2510_08034

Weight = Float[Tensor, "*batch out in_"]


def exact(weight: Weight, _rank: int, _band: Band) -> Triplets:
    """Compute all triplets by LAPACK's divide and conquer, in float64."""
    # In float32, the minor subspace would have an error of about 1e-4, because rounding errors are as large as the gaps
    # between the smallest singular values.
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return Triplets(U, S, Vh)


def gram(weight: Weight, rank: int, band: Band) -> Triplets:
    """Compute eigenvectors of the smaller Gram matrix, `W W'` or `W' W`, and triplets by Rayleigh-Ritz with W."""
    if weight.shape[-2] > weight.shape[-1]:
        transposed = gram(weight.mT, rank, band)
        return Triplets(transposed.Vh.mT, transposed.S, transposed.U.mT)
    # The Gram matrix squares the condition number. Float64 still resolves singular values down to 1e-8 of the largest,
    # below the rounding errors of a float32 weight. With a float32 Gram matrix, the smallest singular value would be
    # off by 5 %.
    weight64 = weight.double()
    size = weight64.shape[-2]
    # One more eigenvector than requested gives the gap between the band and the next singular value.
    count = min(rank + 1, size)
    first_index = 0 if band is Band.MINOR else size - count
    basis = _eigenvectors(weight64 @ weight64.mT, first_index, count)
    P, S, Qh = torch.linalg.svd(basis.mT @ weight64, full_matrices=False)
    return Triplets(basis @ P, S, Qh)


def _eigenvectors(symmetric: Tensor, first_index: int, count: int) -> Tensor:
    """Return `count` eigenvectors (..., n, count) in ascending order of eigenvalues, starting at `first_index`."""
    if symmetric.is_cuda:
        return torch.linalg.eigh(symmetric)[1][..., first_index : first_index + count]
    # LAPACK's dsyevr, called by scipy, computes only the requested eigenvectors. torch computes all, which takes 2.5
    # times as long for n = 1024.
    matrices = symmetric.reshape(-1, *symmetric.shape[-2:]).numpy()
    indices = [first_index, first_index + count - 1]
    vectors = [scipy.linalg.eigh(matrix, subset_by_index=indices, check_finite=False)[1] for matrix in matrices]
    return torch.stack([torch.from_numpy(columns) for columns in vectors]).reshape(*symmetric.shape[:-1], count)


def lanczos(weight: Weight, rank: int, band: Band) -> Triplets:
    """Compute principal triplets by block Lanczos on the weight.

    Raises:
        NotConvergedError: The gap after the first `rank` singular values is too small.
    """
    assert band is Band.PRINCIPAL
    weight_map = LinearMap(weight.shape, lambda X: weight @ X, lambda Y: _adjoint_product(weight, Y), weight)
    ritz = leading_triplets(
        weight_map, rank, generator=_generator(), tolerance=TOLERANCE, max_basis=_max_basis_size(weight, rank)
    )
    return Triplets(ritz.U, ritz.S, ritz.V.mT)


def inverse(weight: Weight, rank: int, band: Band) -> Triplets:
    """Compute minor triplets of a square weight by block Lanczos on its inverse, from one LU factorization.

    Raises:
        NotConvergedError: The gap before the last `rank` singular values is too small, or the weight is zero.
    """
    assert band is Band.MINOR
    # A float32 weight is factorized in float32, at half the cost of float64. Refinements in float64 then remove the
    # error of about 1e-4 in the subspaces.
    factorization = _factorize(weight)
    inverse_map = LinearMap(weight.shape, factorization.solve, factorization.solve_adjoint, weight)
    # In float32, a tighter tolerance would gain nothing, because rounding errors of the factorization dominate.
    tolerance = TOLERANCE if weight.dtype is torch.float64 else 1e-3
    ritz = leading_triplets(
        inverse_map, rank, generator=_generator(), tolerance=tolerance, max_basis=_max_basis_size(weight, rank)
    )
    # Left singular vectors of the inverse are right singular vectors of the weight.
    return _refine(weight, rank, factorization, right=ritz.U, left=ritz.V)


@dataclass(frozen=True)
class _LUFactorization:
    """LU factorization of a weight, or of a nonsingular matrix close to the weight if the weight is singular."""

    LU: Tensor
    pivots: Tensor

    def solve(self, X: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, X.to(self.LU)).to(X.dtype)

    def solve_adjoint(self, Y: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, Y.to(self.LU), adjoint=True).to(Y.dtype)


def _factorize(weight: Tensor) -> _LUFactorization:
    """Factorize a weight, and increase pivots that are below the level of rounding errors.

    Raises:
        NotConvergedError: The weight is zero.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(weight)
    diagonal = LU.diagonal(dim1=-2, dim2=-1)
    min_pivot = torch.finfo(LU.dtype).eps * diagonal.abs().amax(dim=-1, keepdim=True)
    if (min_pivot == 0).any():
        raise NotConvergedError("a zero matrix has no factorization")
    # The minor vectors of a singular weight are its null vectors. With increased pivots, the inverse exists and is
    # largest in the directions of these vectors.
    diagonal.copy_(torch.where(diagonal.abs() < min_pivot, torch.copysign(min_pivot, diagonal), diagonal))
    return _LUFactorization(LU, pivots)


@dataclass(frozen=True)
class _Subspace:
    """Subspace of left or right singular vectors.

    Attributes:
        vectors: Orthonormal basis (..., n, k) of the subspace.
        images: Products (..., m, k) of the weight, or of its transpose, with the basis.
    """

    vectors: Tensor
    images: Tensor

    def rotate(self, Q: Tensor) -> _Subspace:
        return _Subspace(self.vectors @ Q, self.images @ Q)

    def distance(self, directions: Tensor, rank: int) -> float:
        """Return the largest distance of the last `rank` directions from the subspace."""
        outside = directions - self.vectors @ (self.vectors.mT @ directions)
        return float(outside[..., -rank:].norm(dim=-2).max())

    def extend(self, directions: Tensor, apply: Callable[[Tensor], Tensor]) -> _Subspace:
        """Return the k-dimensional subspace with the smallest images in the span of this subspace and `directions`."""
        new, _ = orthonormalize(directions, self.vectors)
        both = _Subspace(torch.cat([self.vectors, new], -1), torch.cat([self.images, apply(new)], -1))
        # A one-sided projection is safe, because no image is smaller than the smallest singular value. A two-sided
        # projection gives spurious small values, and the error grows to 1.
        Qh = torch.linalg.svd(torch.linalg.qr(both.images, mode="r").R)[2]
        return both.rotate(Qh[..., -self.vectors.shape[-1] :, :].mT)


def _refine(weight: Tensor, rank: int, factorization: _LUFactorization, *, right: Tensor, left: Tensor) -> Triplets:
    """Refine minor triplets in float64, with a factorization that may have a lower precision.

    Each round solves for the residuals `W v - s u` and `W' u - s v`, and adds the solutions to the subspaces. The
    number of rounds is limited, so callers must certify the result.
    """
    weight64 = weight.double()
    right_space = _Subspace(right.double(), weight64 @ right.double())
    left_space = _Subspace(left.double(), _adjoint_product(weight64, left.double()))
    left_space, right_space, S = _pair(left_space, right_space)
    errors: list[float] = []
    for _ in range(_MAX_REFINEMENTS):
        values = S[..., None, :]
        # The solution equals the change by a step of inverse iteration, and so measures the error of the subspace. The
        # residual divided by the gap would overstate the error by the condition number, and take six rounds instead of
        # two.
        right_correction = factorization.solve(right_space.images - left_space.vectors * values)
        left_correction = factorization.solve_adjoint(left_space.images - right_space.vectors * values)
        errors.append(max(right_space.distance(right_correction, rank), left_space.distance(left_correction, rank)))
        right_space = right_space.extend(right_correction, lambda X: weight64 @ X)
        left_space = left_space.extend(left_correction, lambda Y: _adjoint_product(weight64, Y))
        left_space, right_space, S = _pair(left_space, right_space)
        # Measuring the error after this round would cost a further solve. All rounds reduce the error by a similar
        # factor, so extrapolation is enough.
        reduction = errors[-1] / errors[-2] if len(errors) > 1 else 1.0
        if errors[-1] * reduction <= _REFINED_TOLERANCE:
            break
    return Triplets(left_space.vectors, S, right_space.vectors.mT)


def _pair(left: _Subspace, right: _Subspace) -> tuple[_Subspace, _Subspace, Tensor]:
    """Rotate the bases to pairs of singular vectors, and return the singular values (..., k), descending."""
    P, S, Qh = torch.linalg.svd(left.vectors.mT @ right.images)
    return left.rotate(P), right.rotate(Qh.mT), S


def _adjoint_product(weight: Tensor, Y: Tensor) -> Tensor:
    # Computes `W' Y` along the rows of W: five times as fast as `W.mT @ Y` for a thin Y in float64 on a CPU.
    return (Y.mT @ weight).mT


def _max_basis_size(weight: Tensor, rank: int) -> int:
    # With a larger basis, an iteration costs about as much as the exact method.
    return min(*weight.shape[-2:], 768 + 8 * rank)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)
