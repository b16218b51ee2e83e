"""What a decomposition costs, before it is made."""

from __future__ import annotations

import time
from statistics import median

import torch

from ailora.spectral.singular_triplets import Band
from ailora.spectral.truncated_svd import choose_method

#: How fast a method computes, relative to a large product of float32 matrices on the same machine; measured by
#: `benchmarks/bench_checkpoints.py` on two cores. Thin products wait for memory, eigenvectors are half serial.
_SHARE = {"exact": 0.08, "gram": 0.25, "lanczos": 0.3, "inverse": 0.35}


def flops(shape: tuple[int, int], rank: int, band: Band, *, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations of `truncated_svd`, from textbook counts (Golub, Van Loan, 4th edition).

    Args:
        shape: (out, in).
        rank: how many triplets.
        band: which end of the spectrum.
        dtype: float32, or float64 for float64 weights.
    """
    large, small = max(shape), min(shape)
    method = choose_method(shape, rank, band, dtype=dtype)
    if method == "exact":
        return 6.0 * large * small**2 + 20.0 * small**3
    if method == "gram":
        return 2.0 * large * small**2 + 4 / 3 * small**3 + 4.0 * large * small * rank
    # An iteration takes about ten vectors a triplet, each with a product from either side.
    products = 4.0 * large * small * 10 * (rank + 8)
    return products if method == "lanczos" else products + 2 / 3 * small**3


def seconds(shape: tuple[int, int], rank: int, band: Band, *, dtype: torch.dtype, speed: float) -> float:
    """A rough estimate of the time that `truncated_svd` takes, without the cache.

    Args:
        shape: as `flops`.
        rank: as `flops`.
        band: as `flops`.
        dtype: as `flops`.
        speed: of `matmul_speed`, on the device that will be used.
    """
    return flops(shape, rank, band, dtype=dtype) / (_SHARE[choose_method(shape, rank, band, dtype=dtype)] * speed)


def matmul_speed(device: torch.device) -> float:
    """Floating-point operations a second of a product of two float32 matrices of 1024 x 1024; takes about 0.1 s."""
    matrix = torch.randn(1024, 1024, device=device, generator=torch.Generator(device).manual_seed(0))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # a GPU computes in the background
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / median(times)
