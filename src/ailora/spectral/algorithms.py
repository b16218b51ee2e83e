"""The methods behind `truncated_svd`: each gives triplets of one band, and may give up.

Every function takes a floating weight (..., out, in) of float32 or wider. It returns the wanted triplets in float32 or
float64, at the wanted end of what may be a few more, so that the gap at the cut is known; none is certified yet.
`docs/numerics.md` says which is taken when, what each costs, and what was tried and lost.
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

#: Asked of the subspaces by iterations that stop. The fp32 SVD of LAPACK is at about 1e-5 on trained weights.
TOLERANCE = 1e-6
#: Asked of a float32 factorization that is refined; each refinement gains about a factor of four.
_REFINED_TOLERANCE = 2e-5
_MAX_REFINEMENTS = 6
_SEED = 2510_08034

Weight = Float[Tensor, "*batch out in_"]


def exact(weight: Weight, rank: int, band: Band) -> Triplets:
    """LAPACK's divide and conquer on the whole matrix, in float64.

    In float32 the minor subspace would be off by about 1e-4: the gaps between the smallest singular values are of the
    size of the rounding errors.
    """
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return Triplets(U, S, Vh)


def gram(weight: Weight, rank: int, band: Band) -> Triplets:
    """A few eigenvectors of `W W'` (or `W' W`, whichever is smaller) in float64, then Rayleigh-Ritz with W itself.

    Forming the Gram matrix squares the condition number: in float64 that leaves singular values down to 1e-8 of the
    largest resolved, which is below the rounding of a float32 weight.
    """
    if weight.shape[-2] > weight.shape[-1]:
        made = gram(weight.mT, rank, band)
        return Triplets(made.Vh.mT, made.S, made.U.mT)
    wide = weight.double()
    small = wide.shape[-2]
    count = min(rank + 1, small)
    first = 0 if band is Band.MINOR else small - count
    basis = _eigenvectors(wide @ wide.mT, first, count)
    P, S, Qh = torch.linalg.svd(basis.mT @ wide, full_matrices=False)
    return Triplets(basis @ P, S, Qh)


def _eigenvectors(symmetric: Tensor, first: int, count: int) -> Tensor:
    """`count` eigenvectors from the `first` in ascending order. On the CPU LAPACK computes just these (dsyevr)."""
    if symmetric.is_cuda:
        return torch.linalg.eigh(symmetric)[1][..., first : first + count]
    flat = symmetric.reshape(-1, *symmetric.shape[-2:]).numpy()
    chosen = [first, first + count - 1]
    vectors = [torch.from_numpy(scipy.linalg.eigh(one, subset_by_index=chosen, check_finite=False)[1]) for one in flat]
    return torch.stack(vectors).reshape(*symmetric.shape[:-1], count)


def lanczos(weight: Weight, rank: int, band: Band) -> Triplets:
    """Block Lanczos with products of the weight itself: principal triplets.

    Raises:
        NotConvergedError: the spectrum is too flat at the cut.
    """
    assert band is Band.PRINCIPAL
    product = LinearMap(weight.shape, lambda X: weight @ X, lambda Y: _adjoint_product(weight, Y), weight)
    ritz = leading_triplets(
        product, rank, generator=_generator(), tolerance=TOLERANCE, max_basis=_max_basis(weight, rank)
    )
    return Triplets(ritz.U, ritz.S, ritz.V.mT)


def inverse(weight: Weight, rank: int, band: Band) -> Triplets:
    """Block Lanczos with products of the inverse, from one LU factorization: minor triplets of a square weight.

    A float32 weight is factorized in float32, which costs half and leaves the subspace off by about 1e-4; refinements
    in float64 mend that: residuals of the weight itself, corrected through the cheap factorization.

    Raises:
        NotConvergedError: the spectrum is too flat at the cut, or the refinements do not reach the tolerance.
    """
    assert band is Band.MINOR
    factors = _factorize(weight)
    backward = LinearMap(weight.shape, factors.solve, factors.solve_adjoint, weight)
    # The rounding of a float32 factorization is far above what a tighter tolerance could gain.
    tolerance = TOLERANCE if weight.dtype is torch.float64 else 1e-3
    ritz = leading_triplets(
        backward, rank, generator=_generator(), tolerance=tolerance, max_basis=_max_basis(weight, rank)
    )
    # The inverse exchanges the sides: its left vectors are the weight's right ones.
    return _refine(weight, rank, factors, right=ritz.U, left=ritz.V)


@dataclass(frozen=True)
class _Factors:
    """An LU factorization that solves, as a preconditioner, also where the weight is singular."""

    LU: Tensor
    pivots: Tensor

    def solve(self, X: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, X.to(self.LU)).to(X.dtype)

    def solve_adjoint(self, Y: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, Y.to(self.LU), adjoint=True).to(Y.dtype)


def _factorize(weight: Tensor) -> _Factors:
    """LU with pivots that are zero, or nearly, replaced by the rounding level.

    A singular weight has its null vectors as minor ones: the nearby regular matrix amplifies exactly these.
    """
    LU, pivots, _ = torch.linalg.lu_factor_ex(weight)
    diagonal = LU.diagonal(dim1=-2, dim2=-1)
    least = torch.finfo(LU.dtype).eps * diagonal.abs().amax(dim=-1, keepdim=True)
    if (least == 0).any():
        raise NotConvergedError("a zero matrix has no factorization")
    diagonal.copy_(torch.where(diagonal.abs() < least, torch.copysign(least, diagonal), diagonal))
    return _Factors(LU, pivots)


@dataclass(frozen=True)
class _Side:
    """Orthonormal vectors (..., n, k) of one side, and what the weight makes of them."""

    vectors: Tensor
    images: Tensor

    def rotated(self, Q: Tensor) -> _Side:
        return _Side(self.vectors @ Q, self.images @ Q)

    def distance(self, directions: Tensor, rank: int) -> float:
        """The largest norm of the last `rank` directions outside the span of the vectors."""
        outside = directions - self.vectors @ (self.vectors.mT @ directions)
        return float(outside[..., -rank:].norm(dim=-2).max())

    def extended(self, directions: Tensor, apply: Callable[[Tensor], Tensor]) -> _Side:
        """The k vectors with the smallest images in the span of these and new directions.

        One-sided, because it cannot go wrong: no image is smaller than the smallest singular value, while a projection
        from both sides shows small values that are none.
        """
        new, _ = orthonormalize(directions, self.vectors)
        both = _Side(torch.cat([self.vectors, new], -1), torch.cat([self.images, apply(new)], -1))
        Qh = torch.linalg.svd(torch.linalg.qr(both.images, mode="r").R)[2]
        return both.rotated(Qh[..., -self.vectors.shape[-1] :, :].mT)


def _refine(weight: Tensor, rank: int, factors: _Factors, *, right: Tensor, left: Tensor) -> Triplets:
    """Improve minor triplets in float64, through a factorization that may be of lower precision.

    A residual `W v - s u`, solved for, is what a step of inverse iteration would change: it measures the error (a plain
    residual overstates it by the condition number), and it is a direction worth adding. Rounds are few; what is left
    after them is judged by the certificate.
    """
    wide = weight.double()
    rights = _Side(right.double(), wide @ right.double())
    lefts = _Side(left.double(), _adjoint_product(wide, left.double()))
    lefts, rights, S = _paired(lefts, rights)
    errors: list[float] = []
    for _ in range(_MAX_REFINEMENTS):
        scaled = S[..., None, :]
        missing_right = factors.solve(rights.images - lefts.vectors * scaled)
        missing_left = factors.solve_adjoint(lefts.images - rights.vectors * scaled)
        errors.append(max(rights.distance(missing_right, rank), lefts.distance(missing_left, rank)))
        rights = rights.extended(missing_right, lambda X: wide @ X)
        lefts = lefts.extended(missing_left, lambda Y: _adjoint_product(wide, Y))
        lefts, rights, S = _paired(lefts, rights)
        # What this round leaves is not measured but foreseen: rounds gain alike.
        gain = errors[-1] / errors[-2] if len(errors) > 1 else 1.0
        if errors[-1] * gain <= _REFINED_TOLERANCE:
            break
    return Triplets(lefts.vectors, S, rights.vectors.mT)


def _paired(lefts: _Side, rights: _Side) -> tuple[_Side, _Side, Tensor]:
    """Rotate both sides so that they pair up as singular vectors; the values, descending, (..., k)."""
    P, S, Qh = torch.linalg.svd(lefts.vectors.mT @ rights.images)
    return lefts.rotated(P), rights.rotated(Qh.mT), S


def _adjoint_product(weight: Tensor, Y: Tensor) -> Tensor:
    """`W' Y`, written so that W is read along its rows: five times as fast for a thin Y in float64 on a CPU."""
    return (Y.mT @ weight).mT


def _max_basis(weight: Tensor, rank: int) -> int:
    """Where an iteration gives up: beyond this the whole decomposition is about as cheap."""
    return min(*weight.shape[-2:], 768 + 8 * rank)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)
