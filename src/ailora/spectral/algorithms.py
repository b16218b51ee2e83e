"""Methods of `truncated_svd`: each computes uncertified triplets from a band, or raises NotConvergedError.

Every method takes a weight (..., out, in) in float32 or float64, and returns at least `rank` triplets in float32 or
float64. The requested triplets are the first for the principal band and the last for the minor band. Further triplets
show the gap at the cut. `docs/numerics.md` lists when each method is chosen, its cost, and methods that lost.
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

#: Error of the subspaces at which an iteration stops. LAPACK's float32 SVD has about 1e-5 on trained weights.
TOLERANCE = 1e-6
#: Error of the subspaces at which refinements stop. Each refinement reduces the error about fourfold.
_REFINED_TOLERANCE = 2e-5
_MAX_REFINEMENTS = 6
_SEED = 2510_08034

Weight = Float[Tensor, "*batch out in_"]


def exact(weight: Weight, _rank: int, _band: Band) -> Triplets:
    """Compute all triplets by LAPACK's divide and conquer, in float64."""
    # In float32 the minor subspace is off by about 1e-4, because rounding errors are as large as the gaps between the
    # smallest singular values.
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return Triplets(U, S, Vh)


def gram(weight: Weight, rank: int, band: Band) -> Triplets:
    """Compute eigenvectors of the smaller Gram matrix, `W W'` or `W' W`, and triplets by Rayleigh-Ritz with W."""
    if weight.shape[-2] > weight.shape[-1]:
        transposed = gram(weight.mT, rank, band)
        return Triplets(transposed.Vh.mT, transposed.S, transposed.U.mT)
    # The Gram matrix squares the condition number. Float64 still resolves singular values down to 1e-8 of the largest,
    # below the rounding errors of a float32 weight. In float32 the smallest value would be 5 % off.
    weight64 = weight.double()
    small = weight64.shape[-2]
    count = min(rank + 1, small)
    first = 0 if band is Band.MINOR else small - count
    basis = _eigenvectors(weight64 @ weight64.mT, first, count)
    P, S, Qh = torch.linalg.svd(basis.mT @ weight64, full_matrices=False)
    return Triplets(basis @ P, S, Qh)


def _eigenvectors(symmetric: Tensor, first: int, count: int) -> Tensor:
    """Return `count` eigenvectors (..., n, count) by ascending eigenvalues, from index `first`."""
    if symmetric.is_cuda:
        return torch.linalg.eigh(symmetric)[1][..., first : first + count]
    # LAPACK's dsyevr, called by scipy, computes only the requested eigenvectors. torch computes all, which takes 2.5
    # times as long for n = 1024.
    matrices = symmetric.reshape(-1, *symmetric.shape[-2:]).numpy()
    indices = [first, first + count - 1]
    vectors = [scipy.linalg.eigh(matrix, subset_by_index=indices, check_finite=False)[1] for matrix in matrices]
    return torch.stack([torch.from_numpy(columns) for columns in vectors]).reshape(*symmetric.shape[:-1], count)


def lanczos(weight: Weight, rank: int, band: Band) -> Triplets:
    """Compute principal triplets by block Lanczos on the weight.

    Raises:
        NotConvergedError: The spectrum is too flat at the cut.
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
        NotConvergedError: The spectrum is too flat at the cut, or the weight is zero.
    """
    assert band is Band.MINOR
    # A float32 weight is factorized in float32, at half the cost of float64. Refinements in float64 then remove the
    # error of about 1e-4 in the subspaces.
    factorization = _factorize(weight)
    inverse_map = LinearMap(weight.shape, factorization.solve, factorization.solve_adjoint, weight)
    # The rounding errors of a float32 factorization are far larger than the gain from a tighter tolerance.
    tolerance = TOLERANCE if weight.dtype is torch.float64 else 1e-3
    ritz = leading_triplets(
        inverse_map, rank, generator=_generator(), tolerance=tolerance, max_basis=_max_basis_size(weight, rank)
    )
    # Left singular vectors of the inverse are right singular vectors of the weight.
    return _refine(weight, rank, factorization, right=ritz.U, left=ritz.V)


@dataclass(frozen=True)
class _LUFactorization:
    """LU factorization of a regular weight, or of a regular matrix near a singular weight."""

    LU: Tensor
    pivots: Tensor

    def solve(self, X: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, X.to(self.LU)).to(X.dtype)

    def solve_adjoint(self, Y: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, Y.to(self.LU), adjoint=True).to(Y.dtype)


def _factorize(weight: Tensor) -> _LUFactorization:
    """Factorize a weight, with pivots raised at least to the level of rounding errors.

    Raises:
        NotConvergedError: The weight is zero.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(weight)
    diagonal = LU.diagonal(dim1=-2, dim2=-1)
    min_pivot = torch.finfo(LU.dtype).eps * diagonal.abs().amax(dim=-1, keepdim=True)
    if (min_pivot == 0).any():
        raise NotConvergedError("a zero matrix has no factorization")
    # The minor vectors of a singular weight are its null vectors. With raised pivots, the inverse exists and is largest
    # in the directions of these vectors.
    diagonal.copy_(torch.where(diagonal.abs() < min_pivot, torch.copysign(min_pivot, diagonal), diagonal))
    return _LUFactorization(LU, pivots)


@dataclass(frozen=True)
class _Subspace:
    """Orthonormal vectors (..., n, k), left or right, and the weight's products with them (..., m, k)."""

    vectors: Tensor
    images: Tensor

    def rotate(self, Q: Tensor) -> _Subspace:
        return _Subspace(self.vectors @ Q, self.images @ Q)

    def distance(self, directions: Tensor, rank: int) -> float:
        """Return the largest norm of the parts outside the subspace, over the last `rank` directions."""
        outside = directions - self.vectors @ (self.vectors.mT @ directions)
        return float(outside[..., -rank:].norm(dim=-2).max())

    def extend(self, directions: Tensor, apply: Callable[[Tensor], Tensor]) -> _Subspace:
        """Return the k vectors with the smallest images, in the span of the subspace and of `directions`."""
        new, _ = orthonormalize(directions, self.vectors)
        both = _Subspace(torch.cat([self.vectors, new], -1), torch.cat([self.images, apply(new)], -1))
        # Projecting from one side is safe, because no image is smaller than the smallest singular value. Projecting
        # from both sides gives spurious small values, with which the error goes to 1.
        Qh = torch.linalg.svd(torch.linalg.qr(both.images, mode="r").R)[2]
        return both.rotate(Qh[..., -self.vectors.shape[-1] :, :].mT)


def _refine(weight: Tensor, rank: int, factorization: _LUFactorization, *, right: Tensor, left: Tensor) -> Triplets:
    """Refine minor triplets in float64, through a factorization that may have a lower precision.

    Each round solves for the residuals `W v - s u` and `W' u - s v` and adds the solutions to the subspaces. The number
    of rounds is limited, so that callers have to certify the result.
    """
    weight64 = weight.double()
    rights = _Subspace(right.double(), weight64 @ right.double())
    lefts = _Subspace(left.double(), _adjoint_product(weight64, left.double()))
    lefts, rights, S = _pair(lefts, rights)
    errors: list[float] = []
    for _ in range(_MAX_REFINEMENTS):
        scaled = S[..., None, :]
        # The solution, which is the change by a step of inverse iteration, measures the error of the subspace. The
        # residual divided by the gap overstates the error by the condition number: six rounds instead of two.
        missing_right = factorization.solve(rights.images - lefts.vectors * scaled)
        missing_left = factorization.solve_adjoint(lefts.images - rights.vectors * scaled)
        errors.append(max(rights.distance(missing_right, rank), lefts.distance(missing_left, rank)))
        rights = rights.extend(missing_right, lambda X: weight64 @ X)
        lefts = lefts.extend(missing_left, lambda Y: _adjoint_product(weight64, Y))
        lefts, rights, S = _pair(lefts, rights)
        # Measuring the error after this round would cost a further solve. All rounds reduce the error by a similar
        # factor, so that extrapolating is enough.
        gain = errors[-1] / errors[-2] if len(errors) > 1 else 1.0
        if errors[-1] * gain <= _REFINED_TOLERANCE:
            break
    return Triplets(lefts.vectors, S, rights.vectors.mT)


def _pair(lefts: _Subspace, rights: _Subspace) -> tuple[_Subspace, _Subspace, Tensor]:
    """Rotate two subspaces to pairs of singular vectors, and compute the singular values (..., k), descending."""
    P, S, Qh = torch.linalg.svd(lefts.vectors.mT @ rights.images)
    return lefts.rotate(P), rights.rotate(Qh.mT), S


def _adjoint_product(weight: Tensor, Y: Tensor) -> Tensor:
    # Computes `W' Y` along the rows of W: five times as fast as `W.mT @ Y` for a thin Y in float64 on a CPU.
    return (Y.mT @ weight).mT


def _max_basis_size(weight: Tensor, rank: int) -> int:
    # With a larger basis, an iteration costs about as much as the exact method.
    return min(*weight.shape[-2:], 768 + 8 * rank)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)
