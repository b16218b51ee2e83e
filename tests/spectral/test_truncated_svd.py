"""Triplets against LAPACK in float64 through numpy: values and subspaces, never vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ailora import Band, InputError, Triplets, truncated_svd


def matrix(out: int, in_: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, in_, generator=generator, dtype=torch.float64).to(dtype)


def select_rows(band: Band, rank: int, count: int) -> slice:
    return slice(0, rank) if band is Band.PRINCIPAL else slice(count - rank, count)


@settings(deadline=None, max_examples=40)
@given(
    out=st.integers(1, 24),
    in_=st.integers(1, 24),
    band=st.sampled_from(Band),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    data=st.data(),
)
def test_triplets_equal_lapacks(out: int, in_: int, band: Band, dtype: torch.dtype, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(out, in_)))
    weight = matrix(out, in_, data.draw(st.integers(0, 99)), dtype)
    made = truncated_svd(weight, rank, band)
    exact = weight.double().numpy()
    S = np.linalg.svd(exact, compute_uv=False)[select_rows(band, rank, min(out, in_))]
    certificate = made.certificate
    assert certificate is not None
    assert max(certificate.residual, certificate.orthogonality) <= certificate.bound
    # Float64 results carry LAPACK's own errors, some tens of epsilon at these sizes.
    eps = torch.finfo(made.S.dtype).eps * (1 if made.S.dtype is torch.float32 else 16)
    assert made.S.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert np.allclose(made.S.double(), S, atol=4 * eps * np.linalg.norm(exact, 2))
    for basis in (made.U.double(), made.Vh.double().T):
        assert torch.linalg.matrix_norm(basis.T @ basis - torch.eye(rank), 2) <= 8 * rank * eps
    scale = 16 * eps * np.linalg.norm(exact, 2) * max(out, in_) ** 0.5
    assert torch.linalg.matrix_norm(weight.double() @ made.Vh.double().T - made.U.double() * made.S.double()) <= scale


@pytest.mark.parametrize("band", Band)
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_a_matrix_and_its_transpose_have_the_same_factors(band: Band, shape: tuple[int, int]) -> None:
    weight = matrix(*shape, seed=5)
    made, transposed = truncated_svd(weight, 3, band), truncated_svd(weight.T, 3, band)
    assert torch.allclose(made.U, transposed.Vh.T, atol=1e-6)
    assert torch.allclose(made.Vh, transposed.U.T, atol=1e-6)


@pytest.mark.parametrize("band", Band)
def test_signs_do_not_depend_on_those_of_lapack(band: Band) -> None:
    made = truncated_svd(matrix(10, 6, seed=2), 4, band)
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0])
    again = Triplets(made.U * flip, made.S, made.Vh * flip[:, None]).with_fixed_signs()
    assert torch.equal(again.U, made.U)
    assert torch.equal(again.Vh, made.Vh)


@pytest.mark.parametrize(
    ("weight", "rank", "band", "method", "message"),
    [
        (torch.ones(4, 3), 0, "minor", "auto", "rank must be between 1 and 3, got 0"),
        (torch.ones(4, 3), 4, "minor", "auto", "rank must be between 1 and 3, got 4"),
        (torch.ones(4, 3), 1, "smallest", "auto", "unknown band 'smallest'; allowed: principal, minor"),
        (torch.ones(4, 3), 1, "minor", "exakt", "did you mean 'exact'"),
        (torch.tensor([[1.0, torch.nan]]), 1, "minor", "auto", "NaN or infinite"),
        (torch.tensor([[1.0, torch.inf]]), 1, "minor", "auto", "NaN or infinite"),
        (torch.ones(4, 3, dtype=torch.int8), 1, "minor", "auto", "expected a floating-point matrix"),
    ],
)
def test_bad_input_is_refused(weight: torch.Tensor, rank: int, band: str, method: str, message: str) -> None:
    # The shape checker of the tests would refuse an integer matrix before the function does.
    call = getattr(truncated_svd, "__wrapped__", truncated_svd)
    with pytest.raises(InputError, match=message):
        call(weight, rank, band, method=method)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(8, 6, device="meta"), "on the meta device"),
        (torch.ones(8, 6).to_sparse(), "got the layout torch.sparse_coo"),
        (torch.ones(8, 6, dtype=torch.bool), "got torch.bool"),
        (torch.ones(8, 6, dtype=torch.complex64), "got torch.complex64"),
        (torch.ones(0, 6), "expected a matrix with entries"),
        (torch.full((4, 4), float("nan")), "holds NaN or infinite entries"),
        ([[1.0]], "got a list"),
    ],
)
def test_what_is_no_matrix(weight: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        truncated_svd(weight, 2, "minor")


@pytest.mark.parametrize("rank", [0, 7, -1, 2.5, 2.0, True, float("nan"), "2", None])
def test_what_is_no_rank(rank: Any) -> None:
    with pytest.raises(InputError, match=r"rank must be between 1 and 6, got .* \(matrix 8 x 6\)"):
        truncated_svd(torch.ones(8, 6), rank, "minor")


def test_float8_weights_are_decomposed_like_their_float32_values() -> None:
    weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    made, expected = truncated_svd(weight, 3, "minor"), truncated_svd(weight.float(), 3, "minor")
    assert torch.equal(made.S, expected.S)


@pytest.mark.parametrize("band", Band)
def test_weights_whose_norm_overflows_float32_are_certified(band: Band) -> None:
    weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    made, expected = truncated_svd(weight * 2.0**70, 3, band), truncated_svd(weight, 3, band)
    assert torch.allclose(made.S / 2.0**70, expected.S)
    assert made.certificate is not None
    assert made.certificate.residual > 0


@pytest.mark.parametrize(("method", "band"), [("lanczos", "principal"), ("inverse", "minor"), ("gram", "minor")])
def test_the_default_device_does_not_matter(method: Any, band: str) -> None:
    weight = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    expected = truncated_svd(weight, 3, band, method=method)
    # Like `torch.set_default_device("cuda")`, the meta device is not the device of the weight.
    with torch.device("meta"):
        made = truncated_svd(weight, 3, band, method=method)
    assert torch.equal(made.U, expected.U)


@pytest.mark.parametrize("band", Band)
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(torch.float32, -130), (torch.float64, 700), (torch.float64, -700), (torch.float64, -1040)]
)
@pytest.mark.parametrize("method", ["auto", "gram"])
def test_weights_near_the_ends_of_the_range_have_scaled_triplets(
    band: Band, dtype: torch.dtype, exponent: int, method: Any
) -> None:
    """Squares overflow or underflow. Integers stay exact even where entries have few bits."""
    weight = torch.randint(-8, 9, (12, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    scaled = torch.from_numpy(np.ldexp(weight.numpy(), exponent))
    made, expected = truncated_svd(scaled, 2, band, method=method), truncated_svd(weight, 2, band, method=method)
    assert torch.allclose(made.U, expected.U, atol=1e-5)
    assert torch.allclose(made.Vh, expected.Vh, atol=1e-5)
    assert np.allclose(np.ldexp(made.S.double().numpy(), -exponent), expected.S.double().numpy(), rtol=1e-5)
    assert made.certificate is not None
    assert 0 < made.certificate.residual <= made.certificate.bound


def test_a_batch_of_different_scales_is_scaled_matrix_by_matrix() -> None:
    weights = torch.stack([torch.eye(4) * factor for factor in (0.0, 2.0**-140, 1.0, 2.0**100)])
    made = truncated_svd(weights, 2, "principal")
    assert made.S.tolist() == [[0.0, 0.0], [2.0**-140] * 2, [1.0, 1.0], [2.0**100] * 2]


def test_singular_values_beyond_the_dtype_are_refused() -> None:
    with pytest.raises(InputError, match=r"the singular values of the matrix overflow torch\.float32"):
        truncated_svd(torch.full((4, 3), 3e38), 1, "principal")
