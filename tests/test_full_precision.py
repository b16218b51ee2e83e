"""Decompositions are exact under every precision that a training loop can choose for its products."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ailora import truncated_svd
from ailora.full_precision import full_precision

CPU = torch.device("cpu")
#: torch before 2.9 has one setting for all backends.
BACKENDS = [
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(torch.backends, "fp32_precision")
]
EXACT = ["ieee", "ieee"] if BACKENDS else ["highest"]


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)
    # Even "highest" is a choice of the backends, which would no longer inherit one.
    for backend in BACKENDS:
        backend.fp32_precision = "none"


def settings() -> list[str]:
    return [backend.fp32_precision for backend in BACKENDS] or [torch.get_float32_matmul_precision()]


def test_products_are_exact_inside_and_as_chosen_outside(precision: str) -> None:
    matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    exact = matrix.double() @ matrix.double()
    before = settings()
    with full_precision(CPU), full_precision(CPU):
        # Entries of the product are sums of 512 terms of size 1: float32 rounds each by 6e-8.
        assert torch.allclose((matrix @ matrix).double(), exact, atol=512 * 6e-8 * 10)
        assert settings() == EXACT
    assert settings() == before
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.skipif(not BACKENDS, reason="torch before 2.9 has one setting for all backends")
def test_an_inherited_choice_stays_inherited() -> None:
    """`training.tf32` sets the precision of all operations, which products inherit."""
    try:
        torch.backends.fp32_precision = "tf32"
        before = settings()
        with full_precision(CPU):
            assert settings() == EXACT
        assert settings() == before
        torch.backends.fp32_precision = "ieee"
        assert settings() != before
    finally:
        torch.backends.fp32_precision = "none"


def test_an_error_restores_the_choice(precision: str) -> None:
    before = settings()
    with pytest.raises(RuntimeError, match="inside"), full_precision(CPU):
        raise RuntimeError("inside")
    assert settings() == before


def test_the_last_of_several_threads_restores_the_choice() -> None:
    before, entered, leave = settings(), threading.Event(), threading.Event()

    def wait_inside() -> None:
        with full_precision(CPU):
            entered.set()
            leave.wait(10)

    with full_precision(CPU):
        thread = threading.Thread(target=wait_inside)
        thread.start()
        assert entered.wait(10)
    assert settings() == EXACT
    leave.set()
    thread.join()
    assert settings() == before


@pytest.mark.parametrize("band", ["principal", "minor"])
def test_triplets_do_not_depend_on_the_choice(precision: str, band: str) -> None:
    """With bfloat16 products, no method passed its certificate: `adapt` refused the model."""
    weight = torch.randn(160, 128, generator=torch.Generator().manual_seed(0))
    triplets = truncated_svd(weight, 8, band)
    expected = torch.linalg.svd(weight.double()).S
    expected = expected[:8] if band == "principal" else expected[-8:]
    assert torch.allclose(triplets.S.double(), expected, atol=1e-5)
