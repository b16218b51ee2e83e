"""The truncated singular value decomposition that inits ask for."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.errors import InputError, unknown_name
from ailora.spectral.triplets import Band, Triplets

Method = Literal["auto", "exact"]
METHODS: tuple[str, ...] = ("auto", "exact")


def truncated_svd(
    weight: Float[Tensor, "out in_"], rank: int, band: Band | str, *, method: Method = "auto"
) -> Triplets:
    """The `rank` singular triplets at one end of the spectrum of `weight`.

    The decomposition runs in float64: a float32 one leaves the minor subspace with an error of about 1e-4, because
    the gaps between the smallest singular values are of the size of its rounding errors.

    Args:
        weight: matrix of any floating dtype, (out, in).
        rank: how many triplets, 1 <= rank <= min(out, in).
        band: `principal` (largest singular values) or `minor` (smallest).
        method: `auto` chooses; `exact` is LAPACK's divide and conquer on the whole matrix.

    Returns:
        Triplets in float32, or float64 for a float64 weight, on the weight's device, S descending, signs fixed.

    Raises:
        InputError: unknown band or method, rank out of range, not a finite floating matrix.
    """
    band = parse_band(band)
    if method not in METHODS:
        raise unknown_name("decomposition method", method, METHODS)
    if weight.ndim != 2 or not weight.is_floating_point():
        raise InputError(f"expected a floating matrix (out, in), got {weight.dtype} {tuple(weight.shape)}")
    if not 1 <= rank <= min(weight.shape):
        raise InputError(
            f"rank {rank} is not possible for a matrix {tuple(weight.shape)}: allowed 1 to {min(weight.shape)}"
        )
    if not torch.isfinite(weight).all():
        raise InputError(f"a matrix {tuple(weight.shape)} holds NaN or infinite entries and has no decomposition")
    result_dtype = torch.promote_types(weight.dtype, torch.float32)
    U, S, Vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    rows = slice(0, rank) if band is Band.PRINCIPAL else slice(S.numel() - rank, S.numel())
    triplets = Triplets(U[:, rows], S[rows], Vh[rows]).with_fixed_signs()
    return Triplets(*(part.to(result_dtype).contiguous() for part in (triplets.U, triplets.S, triplets.Vh)))


def parse_band(band: Band | str) -> Band:
    """The band that a name stands for.

    Raises:
        InputError: the name is neither `principal` nor `minor`.
    """
    try:
        return Band(band)
    except ValueError:
        raise unknown_name("band", band, [b.value for b in Band]) from None
