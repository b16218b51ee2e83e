"""The truncated singular value decomposition that inits ask for: choose a method, certify, fall back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.errors import InputError, parse_choice, unknown_name
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
#: What certificates allow, as a multiple of the result's machine precision. Float32 results come from float64 or are
#: checked at a few epsilon; in float64 LAPACK's own errors, which grow with the size, have to fit in.
_BOUND = {torch.float32: 16.0, torch.float64: 1024.0}
#: Up to this size of the smaller side a few eigenvectors of the Gram matrix cost less than any iteration.
_GRAM_SIDE = 1024


def truncated_svd(
    weight: Float[Tensor, "*batch out in_"], rank: int, band: Band | str, *, method: Method = "auto"
) -> Triplets:
    """The `rank` singular triplets at one end of the spectrum of `weight`, certified.

    The result's residuals are computed with the weight itself. A result that misses the bound is not returned: the
    exact method takes over. Deterministic: iterations start from a seeded block.

    Args:
        weight: matrix of any floating dtype, (out, in), or a batch of equal shapes, decomposed at once.
        rank: how many triplets, 1 <= rank <= min(out, in).
        band: `principal` (largest singular values) or `minor` (smallest).
        method: `auto` chooses (`choose_method`); or `exact`, `gram`, `lanczos` (principal), `inverse` (minor, square).

    Returns:
        Triplets in float32, or float64 for a float64 weight, on the weight's device, S descending, signs fixed, with
        their certificate.

    Raises:
        InputError: unknown band or method, a method that cannot serve this weight, rank out of range, not a finite
            floating matrix.
    """
    band = parse_band(band)
    if method != "auto" and method not in _METHODS:
        raise unknown_name("decomposition method", method, ["auto", *_METHODS])
    if weight.ndim < 2 or not weight.is_floating_point():
        raise InputError(f"expected a floating matrix (out, in), got {weight.dtype} {tuple(weight.shape)}")
    out, in_ = weight.shape[-2:]
    if not 1 <= rank <= min(out, in_):
        raise InputError(f"rank {rank} is not possible for a matrix {(out, in_)}: allowed 1 to {min(out, in_)}")
    working = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    size = torch.linalg.vector_norm(working, dim=(-2, -1))
    if not torch.isfinite(size).all() and not torch.isfinite(working).all():
        raise InputError(f"a matrix {(out, in_)} holds NaN or infinite entries and has no decomposition")
    if method == "auto":
        method = choose_method((out, in_), rank, band, dtype=working.dtype)
    _validate_served(method, (out, in_), band)
    try:
        # Products in an autocast region would run in half precision.
        with torch.autocast(working.device.type, enabled=False):
            return _decompose(working, rank, band, method=method, size=size)
    except NotConvergedError as error:
        raise InputError(f"a matrix {(out, in_)} has no decomposition that can be certified: {error}") from error


def _decompose(weight: Tensor, rank: int, band: Band, *, method: str, size: Tensor) -> Triplets:
    """Run a method; where it fails, the exact one.

    Raises:
        NotConvergedError: the exact method's result misses the bound as well.
    """
    try:
        return _certified(weight, rank, band, method=method, size=size)
    except (NotConvergedError, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        return _certified(weight, rank, band, method="exact", size=size)


def choose_method(shape: tuple[int, int], rank: int, band: Band, *, dtype: torch.dtype) -> Method:
    """The method that `auto` takes; a pure function of what is asked.

    - more than a third of all triplets; float64 up to 1024 on the smaller side, or minor and not square: `exact`;
    - up to 1024 on the smaller side: `gram`;
    - principal: `lanczos`;
    - minor: `inverse` for square weights, `gram` for others.
    """
    small = min(shape)
    square = shape[0] == shape[1]
    if rank > small // 3:
        return "exact"
    if dtype is torch.float64 and (small <= _GRAM_SIDE or (band is Band.MINOR and not square)):
        return "exact"
    if small <= _GRAM_SIDE:
        return "gram"
    if band is Band.PRINCIPAL:
        return "lanczos"
    return "inverse" if square else "gram"


def _validate_served(method: str, shape: tuple[int, int], band: Band) -> None:
    if method == "lanczos" and band is not Band.PRINCIPAL:
        raise InputError("method 'lanczos' gives principal triplets only; for minor ones: inverse, gram, exact, auto")
    if method == "inverse" and (band is not Band.MINOR or shape[0] != shape[1]):
        raise InputError(f"method 'inverse' gives minor triplets of square matrices only, not {band} of {shape}")


def _certified(weight: Tensor, rank: int, band: Band, *, method: str, size: Tensor) -> Triplets:
    """Run a method, cut the band out, and check it against the weight.

    Raises:
        NotConvergedError: the method gave up, or its result misses the bound.
    """
    found = _METHODS[method](weight, rank, band)
    rows = slice(0, rank) if band is Band.PRINCIPAL else slice(found.S.shape[-1] - rank, found.S.shape[-1])
    gap = None
    if found.S.shape[-1] > rank:
        upper = rank if band is Band.PRINCIPAL else found.S.shape[-1] - rank
        distances = found.S[..., upper - 1] - found.S[..., upper]
        gap = float((distances / size).min()) if (size > 0).all() else 0.0
    cut = Triplets(found.U[..., rows], found.S[..., rows], found.Vh[..., rows, :]).with_fixed_signs().to(weight.dtype)
    certificate = _certify(weight, cut, size, method=method, gap=gap)
    if not max(certificate.residual, certificate.orthogonality) <= certificate.bound:
        raise NotConvergedError(f"{method}: {certificate}")
    return replace(cut, certificate=certificate)


def _certify(weight: Tensor, triplets: Triplets, size: Tensor, *, method: str, gap: float | None) -> Certificate:
    U, S, V = triplets.U, triplets.S[..., None, :], triplets.Vh.mT
    if weight.is_cuda:  # where float32 products may be rounded to TF32
        weight, U, S, V = weight.double(), U.double(), S.double(), V.double()
    residuals = [(weight @ V - U * S).norm(dim=-2), (weight.mT @ U - V * S).norm(dim=-2)]
    scale = torch.where(size > 0, size, 1.0)[..., None]
    identity = torch.eye(S.shape[-1], dtype=U.dtype, device=U.device)
    return Certificate(
        method=method,
        residual=float(torch.stack(residuals).div(scale).max()),
        orthogonality=float(max((basis.mT @ basis - identity).abs().max() for basis in (U, V))),
        bound=_BOUND[triplets.U.dtype] * torch.finfo(triplets.U.dtype).eps,
        gap=gap,
    )


def parse_band(band: Band | str) -> Band:
    """The band that a name stands for.

    Raises:
        InputError: the name is neither `principal` nor `minor`.
    """
    return parse_choice("band", band, Band)
