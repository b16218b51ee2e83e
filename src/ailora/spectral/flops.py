"""Estimates of a decomposition's cost, in floating-point operations and seconds."""

from __future__ import annotations

import time
from statistics import median

import torch

from ailora.spectral.singular_triplets import Band
from ailora.spectral.truncated_svd import choose_method

#: Method -> its operations per second, relative to a large float32 matrix product on the same machine. Measured by
#: `benchmarks/bench_checkpoints.py` on two cores. All are far below 1: memory bandwidth limits products with few
#: columns (`lanczos`, `inverse`), and the symmetric eigensolver (half the time of `gram`) runs on one core.
_EFFICIENCY = {"exact": 0.08, "gram": 0.25, "lanczos": 0.3, "inverse": 0.35}


def estimate_flops(shape: tuple[int, int], rank: int, band: Band, *, dtype: torch.dtype = torch.float32) -> float:
    """Estimate the floating-point operations of `truncated_svd` with `method="auto"`.

    The counts of the direct methods come from Golub and Van Loan, Matrix Computations, 4th edition.

    Args:
        shape: Shape of the weight, (out, in).
        rank: Number of triplets.
        band: End of the spectrum.
        dtype: float32, or float64 for float64 weights.

    Returns:
        Number of operations of the method that `choose_method` returns.
    """
    large, small = max(shape), min(shape)
    method = choose_method(shape, rank, band, dtype=dtype)
    if method == "exact":
        return 6.0 * large * small**2 + 20.0 * small**3
    if method == "gram":
        return 2.0 * large * small**2 + 4 / 3 * small**3 + 4.0 * large * small * rank
    # As measured, Lanczos takes about ten vectors for each triplet and eighty more, and two products for each vector.
    products = 4.0 * large * small * 10 * (rank + 8)
    if method == "lanczos":
        return products
    # `inverse` factorizes the square weight, and then solves two triangular systems instead of each product.
    return products + 2 / 3 * small**3


def estimate_seconds(shape: tuple[int, int], rank: int, band: Band, *, dtype: torch.dtype, speed: float) -> float:
    """Estimate roughly the running time of `truncated_svd`.

    Args:
        shape: Shape of the weight, (out, in).
        rank: Number of triplets.
        band: End of the spectrum.
        dtype: float32, or float64 for float64 weights.
        speed: Result of `measure_matmul_speed` on the device of the decomposition, in operations per second.

    Returns:
        Time in seconds.
    """
    efficiency = _EFFICIENCY[choose_method(shape, rank, band, dtype=dtype)]
    return estimate_flops(shape, rank, band, dtype=dtype) / (efficiency * speed)


def measure_matmul_speed(device: torch.device) -> float:
    """Measure the operations per second of a product of two 1024 x 1024 float32 matrices, in about 0.1 s."""
    matrix = torch.randn(1024, 1024, device=device, generator=torch.Generator(device).manual_seed(0))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the product, because GPUs compute asynchronously
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / median(times)
