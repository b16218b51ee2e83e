"""Numbers of products that are never formed, against the products."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ailora.adapter_io.lora_weights import _MAX_FLOAT64_ENTRY
from ailora.adapter_io.update_norms import (
    UpdateStats,
    _relative_norm,
    approximate_product,
    compute_distance,
    compute_norm,
    compute_singular_values,
    pad_factors,
    root_mean_square,
)

EPS = torch.finfo(torch.float64).eps


def factors(seed: int, out: int, in_: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return B, torch.randn(rank, in_, generator=generator, dtype=torch.float64)


shapes = st.tuples(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 15))


@given(shapes)
@settings(deadline=None)
def test_spectra_and_sizes(shape: tuple[int, int, int, int]) -> None:
    B, A = factors(*shape)
    dense = torch.linalg.svdvals(B @ A)
    values = compute_singular_values(B, A)
    # QR and SVD are backward stable: errors are a small multiple of eps times the norm of the factors.
    bound = 64 * EPS * float(B.norm() * A.norm())
    shared = min(len(values), len(dense))
    torch.testing.assert_close(values[:shared], dense[:shared], rtol=0, atol=bound)
    assert not (values[shared:] > bound).any()
    assert compute_norm(B, A) == pytest.approx(float(dense.norm()), abs=bound)


@given(shapes, shapes)
@settings(deadline=None)
def test_differences(shape: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    seed, out, in_, rank = shape
    B, A = factors(seed, out, in_, rank)
    C, D = factors(other[0], out, in_, other[3])
    bound = 64 * EPS * float(B.norm() * A.norm() + C.norm() * D.norm())
    assert compute_distance((B, A), (C, D)) == pytest.approx(float((B @ A - C @ D).norm()), abs=bound)
    assert compute_distance((B, A), (B, A)) <= bound


@given(shapes, st.integers(1, 15))
@settings(deadline=None)
def test_the_best_approximation_loses_the_values_behind_its_rank(shape: tuple[int, int, int, int], kept: int) -> None:
    B, A = factors(*shape)
    near_B, near_A = approximate_product(B, A, kept)
    assert near_B.shape[1] == near_A.shape[0] == kept
    bound = 64 * EPS * float(B.norm() * A.norm())
    lost = torch.linalg.svdvals(B @ A)[kept:].norm()
    assert float((B @ A - near_B @ near_A).norm()) == pytest.approx(float(lost), abs=bound)
    # Evenly split: both factors have the same size.
    assert float(near_B.norm()) == pytest.approx(float(near_A.norm()), abs=1e-6)


def test_padding_changes_no_product() -> None:
    B, A = factors(0, 5, 7, 3)
    wide_B, wide_A = pad_factors(B, A, 6)
    assert torch.equal(wide_B @ wide_A, B @ A)
    assert (wide_B.shape, wide_A.shape) == ((5, 6), (6, 7))


def test_stable_rank() -> None:
    assert UpdateStats(3.0**0.5, None, None, None, (1.0, 1.0, 1.0)).stable_rank == pytest.approx(3)
    assert UpdateStats(0.0, None, None, None, (0.0,)).stable_rank == 0
    assert (root_mean_square([3.0, 4.0]), root_mean_square([])) == (pytest.approx(12.5**0.5), 0)


def test_tiny_and_huge_numbers_neither_vanish_nor_overflow() -> None:
    assert UpdateStats(1e-200, None, None, None, (1e-200,)).stable_rank == 1.0
    for size in (1e-30, 1e30):
        assert _relative_norm(torch.full((2, 2), size), torch.full((2, 2), 2 * size)) == pytest.approx(0.5)


def test_norms_of_the_largest_accepted_factors_are_finite() -> None:
    B, A = (torch.full(shape, _MAX_FLOAT64_ENTRY, dtype=torch.float64) for shape in ((64, 4), (4, 64)))
    # The largest scaling: alpha of 1e12.
    norms = [1e12 * compute_norm(B, A), *(1e12 * compute_singular_values(B, A)).tolist()]
    assert math.isfinite(root_mean_square(norms))
