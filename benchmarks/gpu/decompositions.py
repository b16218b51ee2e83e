"""Batched decompositions of 7B- and 70B-shaped weights, against `torch.linalg.svd` and PEFT's SVD inits.

Weights have the spectrum of trained ones, and are float32 or bfloat16. Seconds are medians of synchronised calls. The
error is the sine of the largest angle to the subspace of the eigenvectors of `W W'` in float64, which resolve these
spectra far below the bounds of interest, and cost less on a GPU than an SVD in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench_spectral import distance, peers, timed, trained_like
from part import PartArguments, parse_arguments

from ailora.spectral import truncated_svd

RANK = 16
REPEATS = 3
#: Seconds below which no further full SVD is started: the largest takes about as long.
SECONDS_FOR_SVD = 30.0


@dataclass(frozen=True)
class Case:
    """Weights of one role: shape, number of matrices that are decomposed at once, band."""

    model: str
    role: str
    shape: tuple[int, int]
    matrices: int
    band: str


CASES = (
    Case("7B", "query", (4096, 4096), 32, "principal"),
    Case("7B", "value", (4096, 4096), 32, "minor"),
    # A quarter of the free memory of a GPU of 80 GiB holds about a dozen of the query weights, as six copies each.
    Case("70B", "query", (8192, 8192), 8, "principal"),
    Case("70B", "value", (1024, 8192), 80, "minor"),
)
TINY_CASES = (
    Case("7B", "query", (96, 96), 2, "principal"),
    Case("7B", "value", (96, 96), 2, "minor"),
    Case("70B", "value", (64, 128), 2, "minor"),
)


def permuted(weight: torch.Tensor, count: int) -> torch.Tensor:
    """Matrices (count, out, in) with the rows of a weight in other orders: new work, the same spectrum."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(weight.shape[0], generator=generator).to(weight.device) for _ in range(count)]
    return torch.stack([weight[order] for order in orders])


def reference(weight: torch.Tensor, band: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases (out, r) and (in, r) of the singular subspaces of a band, from float64."""
    matrix = weight.double()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    vectors = torch.linalg.eigh(wide @ wide.mT).eigenvectors  # in ascending order
    short = vectors[:, -RANK:] if band == "principal" else vectors[:, :RANK]
    # The other side from the weight itself; each column is a singular vector times its singular value.
    long = torch.linalg.qr(wide.mT @ short).Q
    return (short, long) if wide is matrix else (long, short)


def error(exact: tuple[torch.Tensor, torch.Tensor], U: torch.Tensor, Vh: torch.Tensor) -> float:
    """The larger of the left and the right subspace error."""
    return max(distance(exact[0], U), distance(exact[1], Vh.mT))


def batched(case: Case, weight: torch.Tensor) -> dict[str, Any]:
    """Time the decomposition of a batch, and measure the error of its first matrix."""
    matrices = permuted(weight, case.matrices)
    seconds, triplets = timed(partial(truncated_svd, matrices, RANK, case.band), REPEATS)
    first = matrices[0]
    del matrices
    return {
        "method": triplets.certificate.method,
        "seconds": seconds,
        "seconds_per_matrix": seconds / case.matrices,
        "error": error(reference(first, case.band), triplets.U[0], triplets.Vh[0]),
        "certified_residual": triplets.certificate.residual,
    }


def full_svd(case: Case, weight: torch.Tensor) -> dict[str, Any]:
    """Time one `torch.linalg.svd` in float32, and measure the error of the band that would be taken from it."""
    seconds, (U, _, Vh) = timed(lambda: torch.linalg.svd(weight.float(), full_matrices=False), 1)
    small = min(case.shape)
    rows = slice(0, RANK) if case.band == "principal" else slice(small - RANK, small)
    return {"seconds_per_matrix": seconds, "error": error(reference(weight, case.band), U[:, rows], Vh[rows])}


def main(arguments: PartArguments) -> None:
    cases = TINY_CASES if arguments.tiny else CASES
    record = arguments.recorder.write
    truncated_svd(torch.randn(64, 64, device=arguments.device), 4, "principal")  # loads the libraries' kernels
    weights: dict[tuple[int, int], torch.Tensor] = {}
    for case in cases:
        if case.shape not in weights:
            weights = {case.shape: trained_like(*case.shape, seed=case.shape[1], device=arguments.device)}
        for dtype in (torch.float32, torch.bfloat16):
            figures = batched(case, weights[case.shape].to(dtype))
            name = f"{case.model} {case.role} {str(dtype).removeprefix('torch.')}"
            what = {"shape": list(case.shape), "matrices": case.matrices, "band": case.band, "rank": RANK}
            record(
                f"batched, {name}",
                what | figures,
                f"{name}: {case.matrices} of {case.shape[0]} x {case.shape[1]}, {case.band}: {figures['method']}, "
                f"{1e3 * figures['seconds_per_matrix']:.1f} ms a matrix, error {figures['error']:.1e}",
            )
    size = cases[0].shape[0]
    compared = peers(size, arguments.device)
    line = f"recorded: the inits of peft and ailora, {size} x {size}"
    record("peft and ailora, one matrix", {"shape": [size, size], "rank": RANK, "seconds": compared}, line)
    for case in cases:
        if arguments.seconds_left < SECONDS_FOR_SVD and not arguments.tiny:
            record(f"full SVD, {case.model} {case.role}", {"skipped": "time"}, f"full SVD {case.shape}: no time left")
            continue
        weight = trained_like(*case.shape, seed=case.shape[1], device=arguments.device)
        figures = full_svd(case, weight)
        record(
            f"full SVD, {case.model} {case.role}",
            {"shape": list(case.shape), "band": case.band, "rank": RANK} | figures,
            f"full SVD {case.shape[0]} x {case.shape[1]}, {case.band}: {figures['seconds_per_matrix']:.3f} s, "
            f"error {figures['error']:.1e}",
        )


if __name__ == "__main__":
    main(parse_arguments("decompositions"))
