"""Truncated singular value decomposition: choose a method, certify the result, or fall back to the exact method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ailora.errors import InputError, parse_choice, unknown_name
from ailora.full_precision import full_precision
from ailora.spectral import algorithms
from ailora.spectral.lanczos import NotConvergedError
from ailora.spectral.singular_triplets import Band, Certificate, Triplets

Method = Literal["auto", "exact", "gram", "lanczos", "inverse"]
_METHODS: dict[str, Callable[[Tensor, int, Band], Triplets]] = {
    "exact": algorithms.exact,
    "gram": algorithms.gram,
    "lanczos": algorithms.lanczos,
    "inverse": algorithms.inverse,
}
#: Bound of certificates, as a multiple of the machine precision of the result. Float32 results have errors of a few
#: machine epsilons, because most are computed in float64. Float64 results need a larger bound, because LAPACK's errors
#: grow with the size of the matrix.
_BOUND_IN_EPS = {torch.float32: 16.0, torch.float64: 1024.0}
#: Range of Frobenius norms. Matrices outside this range are scaled before the decomposition. Otherwise, squares of
#: entries or residuals could overflow, or underflow to zero, and a residual of zero would certify any result.
_SAFE_NORMS = (1e-9, 1e9)
#: Up to this length of the smaller side, a few eigenvectors of the Gram matrix cost less than any iteration.
_MAX_GRAM_SIDE = 1024


def truncated_svd(
    weight: Float[Tensor, "*batch out in_"], rank: int, band: Band | str, *, method: Method = "auto"
) -> Triplets:
    """Compute the `rank` certified singular triplets at one end of the spectrum of `weight`.

    The residuals of the result are computed with the weight itself. If a residual exceeds the bound, the exact method
    takes over. The result is deterministic, because iterations start from random vectors with a fixed seed.

    Args:
        weight: Matrix (out, in) of any floating-point dtype, or a batch of matrices (..., out, in).
        rank: Number of triplets, 1 <= rank <= min(out, in).
        band: `principal` (largest singular values) or `minor` (smallest).
        method: `exact`, `gram`, `lanczos` (principal only), `inverse` (minor, square only), or `auto`: see
            `choose_method`.

    Returns:
        Triplets with certificate on the weight's device, in float64 for a float64 weight and in float32 for all others.
        Singular values are descending, and the signs of vectors are fixed.

    Raises:
        InputError: The band or the method is unknown, the method does not apply to the weight, the rank is out of
            range, the weight is not a finite floating-point matrix, a singular value overflows the dtype of the result,
            or no method is accurate enough.

    Examples:
        >>> import torch
        >>> triplets = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, "minor")
        >>> [round(value, 4) for value in triplets.S.tolist()]
        [2.0, 1.0]
    """
    band = parse_band(band)
    if method != "auto" and method not in _METHODS:
        raise unknown_name("decomposition method", method, ["auto", *_METHODS])
    validate_decomposable(weight)
    out, in_ = weight.shape[-2:]
    if type(rank) is not int or not 1 <= rank <= min(out, in_):
        raise InputError(f"rank must be between 1 and {min(out, in_)}, got {rank!r} (matrix {out} x {in_})")
    if weight.device.type == "mps":
        # Apple's GPUs have no float64, which every method needs.
        return truncated_svd(weight.cpu(), rank, band, method=method).to(weight.device)
    # Not `promote_types`, which refuses float8.
    matrix = weight.detach().to(torch.float64 if weight.dtype is torch.float64 else torch.float32)
    norm = frobenius_norm(matrix)
    # The norm of finite float64 entries can overflow, so an infinite norm alone is no error.
    if not torch.isfinite(norm).all() and not torch.isfinite(matrix).all():
        raise InputError(f"matrix {out} x {in_} holds NaN or infinite entries and has no decomposition")
    if method == "auto":
        method = choose_method((out, in_), rank, band, dtype=matrix.dtype)
    _validate_method(method, (out, in_), band)
    lowest, highest = _SAFE_NORMS
    scale = None if ((norm > lowest) & (norm < highest)).all() else _power_of_two(matrix)
    if scale is not None:
        # Division by a power of two is exact, except that entries negligible beside the largest may underflow.
        matrix = (matrix.double() / scale).to(matrix.dtype)
        norm = frobenius_norm(matrix)
    try:
        with full_precision(matrix.device):
            triplets = _decompose(matrix, rank, band, method=method, norm=norm)
    except NotConvergedError as error:
        raise InputError(f"no method decomposes the {out} x {in_} matrix accurately enough: {error}") from error
    return triplets if scale is None else _rescale(triplets, scale)


def validate_decomposable(weight: object) -> None:
    """Refuse anything but a dense floating-point matrix, or a batch of matrices, with at least one entry.

    Raises:
        InputError: The argument has no decomposition.
    """
    if not isinstance(weight, Tensor):
        raise InputError(f"expected a floating-point matrix (out, in), got a {type(weight).__name__}")
    if weight.layout is not torch.strided or weight.is_quantized:
        raise InputError(f"expected a dense matrix (out, in), got the layout {weight.layout}: call to_dense() first")
    if weight.device.type == "meta":
        raise InputError("expected a matrix with entries, got one on the meta device: load the model's weights first")
    if weight.ndim < 2 or not weight.is_floating_point():
        raise InputError(f"expected a floating-point matrix (out, in), got {weight.dtype} {tuple(weight.shape)}")
    if 0 in weight.shape:
        raise InputError(f"expected a matrix with entries, got {tuple(weight.shape)}")


def frobenius_norm(matrix: Float[Tensor, "*batch out in_"]) -> Float[Tensor, "*batch"]:
    """Compute the Frobenius norm of each matrix, in the dtype of the matrix unless the norm leaves its range."""
    # The norm needs no more precision than the matrix has. For a 4096 x 4096 matrix, float64 would take 0.05 s.
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1))
    # In float32, squares of entries above 1e19 overflow, and squares of entries below 1e-23 underflow.
    in_range = torch.isfinite(norm).all() and (norm > 0).all()
    return norm if in_range else torch.linalg.vector_norm(matrix.double(), dim=(-2, -1))


def _power_of_two(matrix: Float[Tensor, "*batch out in_"]) -> Float[Tensor, "*batch 1 1"]:
    """Return the power of two at or below the largest absolute entry of each matrix in float64, 1 for a zero matrix."""
    largest = matrix.abs().amax(dim=(-2, -1), keepdim=True).double()
    # `exp2` may round. This quotient is exact.
    return torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1.0)


def _rescale(triplets: Triplets, scale: Float[Tensor, "*batch 1 1"]) -> Triplets:
    """Return the triplets of `scale` times the decomposed matrix. The certificate is relative, so it stays valid.

    Raises:
        InputError: A singular value overflows.
    """
    S = (triplets.S.double() * scale[..., 0]).to(triplets.S.dtype)
    if not torch.isfinite(S).all():
        raise InputError(f"the singular values of the matrix overflow {S.dtype}: scale the matrix down")
    return replace(triplets, S=S)


def _decompose(weight: Tensor, rank: int, band: Band, *, method: str, norm: Tensor) -> Triplets:
    """Run a method. If the method fails, run the exact method.

    Raises:
        NotConvergedError: The errors of the exact method also exceed the bound.
    """
    try:
        return _run_certified(weight, rank, band, method=method, norm=norm)
    # `gram` calls scipy, which raises numpy's error.
    except (NotConvergedError, np.linalg.LinAlgError, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        return _run_certified(weight, rank, band, method="exact", norm=norm)


def choose_method(shape: tuple[int, int], rank: int, band: Band, *, dtype: torch.dtype) -> Method:
    """Choose the method for `auto` by the first line that applies.

    - `exact` for more than a third of all triplets.
    - `exact` for a float64 weight with a smaller side up to 1024.
    - `exact` for minor triplets of a float64 weight that is not square.
    - `gram` for a weight with a smaller side up to 1024.
    - `lanczos` for principal triplets.
    - `inverse` for minor triplets of a square weight.
    - `gram` in all other cases.

    Args:
        shape: Shape of the weight, (out, in).
        rank: Number of triplets.
        band: End of the spectrum.
        dtype: float32 or float64.

    Returns:
        Name of the method.
    """
    small = min(shape)
    square = shape[0] == shape[1]
    if rank > small // 3:
        return "exact"
    # The Gram matrix halves the number of correct digits. The rest is too few for a float64 result.
    if dtype is torch.float64 and (small <= _MAX_GRAM_SIDE or (band is Band.MINOR and not square)):
        return "exact"
    if small <= _MAX_GRAM_SIDE:
        return "gram"
    if band is Band.PRINCIPAL:
        return "lanczos"
    return "inverse" if square else "gram"


def _validate_method(method: str, shape: tuple[int, int], band: Band) -> None:
    if method == "lanczos" and band is not Band.PRINCIPAL:
        raise InputError("method 'lanczos' computes only principal triplets; for minor ones use 'inverse' or 'gram'")
    if method == "inverse" and (band is not Band.MINOR or shape[0] != shape[1]):
        raise InputError(f"method 'inverse' computes minor triplets of square matrices only, got {band}, {shape}")


def _run_certified(weight: Tensor, rank: int, band: Band, *, method: str, norm: Tensor) -> Triplets:
    """Run a method, select the band, and certify the triplets with the weight.

    Raises:
        NotConvergedError: The method does not converge, or the errors of the result exceed the bound.
    """
    result = _METHODS[method](weight, rank, band)
    count = result.S.shape[-1]
    in_band = slice(0, rank) if band is Band.PRINCIPAL else slice(count - rank, count)
    gap = None
    # If the method computed triplets beyond the band, the singular value next to the band is known.
    if count > rank:
        boundary = rank if band is Band.PRINCIPAL else count - rank
        distances = result.S[..., boundary - 1] - result.S[..., boundary]
        gap = float((distances / norm).min()) if (norm > 0).all() else 0.0
    triplets = Triplets(result.U[..., in_band], result.S[..., in_band], result.Vh[..., in_band, :])
    triplets = triplets.with_fixed_signs().to(weight.dtype)
    certificate = _certify(weight, triplets, norm, method=method, gap=gap)
    # `not ... <=` instead of `>`, so that NaN counts as above the bound.
    if not max(certificate.residual, certificate.orthogonality) <= certificate.bound:
        raise NotConvergedError(f"{method}: {certificate}")
    return replace(triplets, certificate=certificate)


def _certify(weight: Tensor, triplets: Triplets, norm: Tensor, *, method: str, gap: float | None) -> Certificate:
    U, S, V = triplets.U, triplets.S[..., None, :], triplets.Vh.mT
    if weight.is_cuda:  # GPUs may round float32 products to TF32
        weight, U, S, V = weight.double(), U.double(), S.double(), V.double()
    residuals = [(weight @ V - U * S).norm(dim=-2), (weight.mT @ U - V * S).norm(dim=-2)]
    scale = torch.where(norm > 0, norm, 1.0)[..., None]
    identity = torch.eye(S.shape[-1], dtype=U.dtype, device=U.device)
    return Certificate(
        method=method,
        residual=float(torch.stack(residuals).div(scale).max()),
        orthogonality=float(max((basis.mT @ basis - identity).abs().max() for basis in (U, V))),
        bound=_BOUND_IN_EPS[triplets.U.dtype] * torch.finfo(triplets.U.dtype).eps,
        gap=gap,
    )


def parse_band(band: Band | str) -> Band:
    """Parse the name of a band.

    Raises:
        InputError: The name is neither `principal` nor `minor`.
    """
    return parse_choice("band", band, Band)
