"""Intruder dimensions against the definition, with the whole decomposition in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ailora.analysis import intruders
from ailora.analysis.intruders import LeftSingularVectors, nearest_cosines
from ailora.spectral import Triplets

GENERATOR = torch.Generator().manual_seed(3)


def by_definition(before: torch.Tensor, after: torch.Tensor, top: int) -> np.ndarray:
    U0 = np.linalg.svd(before.double().numpy(), full_matrices=False)[0]
    U = np.linalg.svd(after.double().numpy(), full_matrices=False)[0][:, :top]
    return np.abs(U0.T @ U).max(axis=0)


def spectral(out: int, in_: int, values: torch.Tensor) -> torch.Tensor:
    """A matrix with these singular values, whose directions are well apart."""
    U = torch.linalg.qr(torch.randn(out, len(values), generator=GENERATOR, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(in_, len(values), generator=GENERATOR, dtype=torch.float64)).Q
    return (U * values) @ V.mT


def by_numpy(weight: torch.Tensor, rank: int, band: str) -> Triplets:
    assert band == "principal"
    U, S, Vh = (torch.from_numpy(x) for x in np.linalg.svd(weight.numpy(), full_matrices=False))
    return Triplets(U[:, :rank], S[:rank], Vh[:rank])


@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (30, 60)])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_the_decision_is_that_of_the_definition(shape: tuple[int, int], size: float) -> None:
    before = spectral(*shape, torch.linspace(10, 1, min(shape), dtype=torch.float64))
    after = before + size * spectral(*shape, torch.ones(1, dtype=torch.float64))
    exact = by_definition(before, after, 5)
    found = nearest_cosines(LeftSingularVectors(before.float(), 5), after, 0.5).numpy()
    assert ((found < 0.5) == (exact < 0.5)).all()
    assert (found <= exact + 1e-4).all()
    assert (exact < 0.5).sum() == (1 if size == 30 else 0)


def test_the_whole_decomposition_is_made_only_where_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    svd = torch.linalg.svd
    # What `truncated_svd` does inside is another matter: here it takes a decomposition as a whole.
    monkeypatch.setattr(intruders, "truncated_svd", by_numpy)
    monkeypatch.setattr(intruders.torch.linalg, "svd", lambda *a, **k: made.append(1) or svd(*a, **k))
    before = spectral(64, 64, torch.linspace(10, 1, 64, dtype=torch.float64))
    directions = LeftSingularVectors(before, 4)
    nearest_cosines(directions, before + 0.01 * spectral(64, 64, torch.ones(1, dtype=torch.float64)), 0.5)
    assert not made
    # A minor direction of the base made the largest: none of the first 16 is like it, and the last one is it.
    U, _, Vh = svd(before)
    after = before + 50 * torch.outer(U[:, -1], Vh[-1])
    found = nearest_cosines(directions, after, 0.5)
    assert made
    assert found[0] > 0.99
