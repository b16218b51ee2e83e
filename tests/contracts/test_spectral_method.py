"""What every decomposition method promises, on ordinary and on degenerate matrices, against LAPACK in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ailora import Band, InputError, Triplets, truncated_svd
from ailora.spectral import algorithms
from ailora.spectral.lanczos import NotConvergedError
from ailora.spectral.truncated_svd import _METHODS, choose_method

#: method -> the bands that it serves
METHODS = {
    "auto": tuple(Band),
    "exact": tuple(Band),
    "gram": tuple(Band),
    "lanczos": (Band.PRINCIPAL,),
    "inverse": (Band.MINOR,),
}
CASES = [(method, band) for method, bands in METHODS.items() for band in bands]
by_method = pytest.mark.parametrize(("method", "band"), CASES)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(values: torch.Tensor, out: int, in_: int, seed: int = 0) -> torch.Tensor:
    """A float64 matrix with given singular values and random vectors."""
    U = torch.linalg.qr(noise(out, len(values), seed=seed)).Q
    V = torch.linalg.qr(noise(in_, len(values), seed=seed + 1)).Q
    return (U * values) @ V.mT


def trained_like(n: int, seed: int = 0) -> torch.Tensor:
    """A power-law head, and a bulk that goes down to nearly zero."""
    values = 10 * torch.arange(1, n + 1, dtype=torch.float64) ** -0.5
    head = n // 8
    values[head:] = values[head - 1] * torch.linspace(1, 1e-3, n - head, dtype=torch.float64)
    return with_spectrum(values, n, n, seed)


#: name -> a square matrix, its rank asked for, whether the cut has a gap so that the subspace is unique
SQUARE: dict[str, tuple[Callable[[], torch.Tensor], int, bool]] = {
    "trained-like": (lambda: trained_like(96), 6, True),
    "random": (lambda: noise(64, 64), 5, True),
    "r = 1": (lambda: noise(48, 48), 1, True),
    "rank-deficient": (lambda: noise(60, 40) @ noise(40, 60, seed=1), 4, False),
    "zero rows and columns": (lambda: _with_zeros(noise(50, 50)), 3, False),
    "zero matrix": (lambda: torch.zeros(20, 20, dtype=torch.float64), 2, False),
    "identity": (lambda: torch.eye(40, dtype=torch.float64), 4, False),
    "repeated values at the cut": (lambda: with_spectrum(_steps(40), 40, 40), 5, False),
    "cut inside a flat bulk": (lambda: with_spectrum(_flat(64), 64, 64), 8, False),
    "dynamic range 1e8": (lambda: with_spectrum(torch.logspace(0, -8, 48, dtype=torch.float64), 48, 48), 4, False),
    "tiny entries": (lambda: 1e-30 * trained_like(48), 4, True),
    "huge entries": (lambda: 1e25 * trained_like(48), 4, True),
}


def _with_zeros(weight: torch.Tensor) -> torch.Tensor:
    weight[3:8] = 0
    weight[:, 10] = 0
    return weight


def _steps(n: int) -> torch.Tensor:
    """Groups of eight equal values."""
    return torch.repeat_interleave(torch.arange(n // 8, 0, -1, dtype=torch.float64), 8)


def _flat(n: int) -> torch.Tensor:
    """Three large values, a flat bulk, three small ones."""
    values = torch.ones(n, dtype=torch.float64)
    values[:3], values[-3:] = 5.0, 0.1
    return values


def check(weight: torch.Tensor, made: Triplets, band: Band, *, unique: bool) -> None:
    """Values, residuals and orthonormality, and where the subspace is unique its projector, to the stated bound."""
    rank = made.S.shape[-1]
    exact = weight.double().numpy()
    U, S, Vh = np.linalg.svd(exact, full_matrices=False)
    rows = slice(0, rank) if band is Band.PRINCIPAL else slice(len(S) - rank, len(S))
    certificate, size = made.certificate, np.linalg.norm(exact)
    assert certificate is not None
    assert max(certificate.residual, certificate.orthogonality) <= certificate.bound
    assert np.all(np.diff(made.S.numpy()) <= certificate.bound * size)
    # Weyl: values of the weight on nearly orthonormal vectors, within the certified residual and orthogonality.
    assert np.allclose(made.S.double(), S[rows], atol=4 * rank**0.5 * certificate.bound * size)
    for basis in (made.U.double(), made.Vh.double().mT):
        assert torch.linalg.matrix_norm(basis.mT @ basis - torch.eye(rank), 2) <= rank * certificate.bound
    if unique:
        for ours, theirs in ((made.U, U[:, rows]), (made.Vh.mT, Vh[rows].T)):
            basis = torch.linalg.qr(ours.double()).Q.numpy()
            assert np.linalg.norm(basis - theirs @ (theirs.T @ basis), 2) <= 1e-4


@by_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", SQUARE)
def test_square_matrices(name: str, method: str, band: Band, dtype: torch.dtype) -> None:
    make, rank, unique = SQUARE[name]
    weight = make().to(dtype)
    if not torch.isfinite(weight).all():
        pytest.skip("the dtype does not hold such numbers")
    made = truncated_svd(weight, rank, band, method=method)
    # Half precision moves the smallest values of a matrix by more than their distances: compare with what it holds.
    check(weight, made, band, unique=unique and dtype in (torch.float32, torch.float64))


@pytest.mark.parametrize(("method", "band"), [c for c in CASES if c[0] != "inverse"])
@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (1, 25), (25, 1), (200, 3)])
def test_rectangular_matrices(shape: tuple[int, int], method: str, band: Band) -> None:
    for rank in sorted({1, min(shape) // 2 or 1, min(shape)}):
        weight = noise(*shape).float()
        check(weight, truncated_svd(weight, rank, band, method=method), band, unique=True)


@by_method
def test_every_rank_up_to_the_size(method: str, band: Band) -> None:
    weight = trained_like(24).float()
    for rank in (1, 8, 23, 24):
        check(weight, truncated_svd(weight, rank, band, method=method), band, unique=True)


@by_method
def test_batches_and_strided_weights(method: str, band: Band) -> None:
    batch = torch.stack([trained_like(40, seed=s) for s in range(3)]).float()
    made = truncated_svd(batch, 4, band, method=method)
    for index, weight in enumerate(batch):
        one = Triplets(made.U[index], made.S[index], made.Vh[index], made.certificate)
        check(weight, one, band, unique=True)
    strided = torch.stack([batch[0], batch[1]], dim=-1)[..., 1].mT
    assert not strided.is_contiguous()
    check(strided, truncated_svd(strided, 4, band, method=method), band, unique=True)


@by_method
def test_the_weight_is_not_written_to(method: str, band: Band) -> None:
    weight = _with_zeros(noise(50, 50)).float()
    before = weight.clone()
    truncated_svd(weight, 3, band, method=method)
    assert torch.equal(weight, before)


@settings(deadline=None, max_examples=60)
@given(
    out=st.integers(1, 40),
    in_=st.integers(1, 40),
    band=st.sampled_from(Band),
    decay=st.floats(0, 12),
    data=st.data(),
)
def test_any_shape_and_spectrum(out: int, in_: int, band: Band, decay: float, data: st.DataObject) -> None:
    small = min(out, in_)
    rank = data.draw(st.integers(1, small))
    values = torch.logspace(0, -decay, small, dtype=torch.float64)
    weight = with_spectrum(values, out, in_, data.draw(st.integers(0, 50))).float()
    methods_here = ["auto", "gram", "exact"]
    methods_here += ["lanczos"] if band is Band.PRINCIPAL else ["inverse"] if out == in_ else []
    for method in methods_here:
        check(weight, truncated_svd(weight, rank, band, method=method), band, unique=False)


@by_method
def test_the_same_call_gives_the_same_bits(method: str, band: Band) -> None:
    weight = trained_like(80).float()
    first, second = (truncated_svd(weight, 5, band, method=method) for _ in range(2))
    assert torch.equal(first.U, second.U)
    assert torch.equal(first.Vh, second.Vh)


@by_method
def test_the_band_does_not_depend_on_the_number_of_threads(method: str, band: Band) -> None:
    weight = trained_like(160).float()
    parts = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            made = truncated_svd(weight, 8, band, method=method)
            parts.append((made.U.double() * made.S) @ made.Vh.double())
    finally:
        torch.set_num_threads(threads)
    assert (parts[0] - parts[1]).norm() <= 1e-6 * weight.norm()


# --- failures --------------------------------------------------------------------------------------------------------


def _garbage(weight: torch.Tensor, rank: int, band: Band) -> Triplets:
    """Orthonormal, finite, and wrong."""
    basis = torch.linalg.qr(noise(weight.shape[-1], rank)).Q
    return Triplets(basis, weight.double().abs().amax().expand(rank), basis.mT)


def _not_orthonormal(weight: torch.Tensor, rank: int, band: Band) -> Triplets:
    """The same exact triplet several times."""
    made = algorithms.exact(weight, rank, band)
    first = slice(0, 1) if band is Band.PRINCIPAL else slice(-1, None)
    return Triplets(made.U[:, first].repeat(1, rank), made.S[first].repeat(rank), made.Vh[first].repeat(rank, 1))


def _not_finite(weight: torch.Tensor, rank: int, band: Band) -> Triplets:
    made = _garbage(weight, rank, band)
    return Triplets(made.U * torch.nan, made.S, made.Vh)


def _gives_up(weight: torch.Tensor, rank: int, band: Band) -> Triplets:
    raise NotConvergedError("no")


@pytest.mark.parametrize("exponent", [0, -90, 90])
@pytest.mark.parametrize("failure", [_garbage, _not_orthonormal, _not_finite, _gives_up])
@pytest.mark.parametrize(("method", "band"), [c for c in CASES if c[0] not in ("auto", "exact")])
def test_a_hidden_failure_ends_in_the_exact_result(
    monkeypatch: pytest.MonkeyPatch, failure: Callable[..., Triplets], method: str, band: Band, exponent: int
) -> None:
    weight = trained_like(40).float() * 2.0**exponent
    monkeypatch.setitem(_METHODS, method, failure)
    made = truncated_svd(weight, 4, band, method=method)
    assert made.certificate is not None
    assert made.certificate.method == "exact"
    check(weight, made, band, unique=True)


def test_a_broken_factorization_ends_in_the_exact_result(monkeypatch: pytest.MonkeyPatch) -> None:
    real = algorithms._LUFactorization.solve
    monkeypatch.setattr(algorithms._LUFactorization, "solve", lambda self, X: real(self, X) + X)
    weight = trained_like(64).float()
    check(weight, truncated_svd(weight, 4, "minor", method="inverse"), Band.MINOR, unique=True)


@pytest.mark.parametrize(
    ("method", "band", "shape"),
    [("lanczos", "minor", (8, 8)), ("inverse", "principal", (8, 8)), ("inverse", "minor", (8, 9))],
)
def test_a_method_that_cannot_serve_is_refused(method: str, band: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"method '{method}' computes"):
        truncated_svd(torch.ones(shape), 2, band, method=method)


@pytest.mark.parametrize(
    ("shape", "rank", "band", "dtype", "expected"),
    [
        ((384, 384), 8, Band.MINOR, torch.float32, "gram"),
        ((384, 384), 200, Band.MINOR, torch.float32, "exact"),
        ((384, 384), 8, Band.PRINCIPAL, torch.float64, "exact"),
        ((4096, 4096), 16, Band.PRINCIPAL, torch.float32, "lanczos"),
        ((4096, 4096), 16, Band.MINOR, torch.float32, "inverse"),
        ((1024, 4096), 16, Band.MINOR, torch.float32, "gram"),
        ((14336, 4096), 16, Band.MINOR, torch.float32, "gram"),
        ((14336, 4096), 16, Band.PRINCIPAL, torch.float32, "lanczos"),
        ((2048, 4096), 16, Band.MINOR, torch.float64, "exact"),
    ],
)
def test_which_method_is_taken(
    shape: tuple[int, int], rank: int, band: Band, dtype: torch.dtype, expected: str
) -> None:
    assert choose_method(shape, rank, band, dtype=dtype) == expected


@pytest.mark.slow
@pytest.mark.parametrize("band", Band)
def test_a_large_trained_like_weight(band: Band) -> None:
    """Sizes at which the iterations are what `auto` takes."""
    weight = trained_like(1536).float()
    made = truncated_svd(weight, 16, band)
    assert made.certificate is not None
    assert made.certificate.method == ("lanczos" if band is Band.PRINCIPAL else "inverse")
    check(weight, made, band, unique=True)
