"""Gram matrices that are gathered block by block against those of whole weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ailora.analysis import gram_matrix as module
from ailora.analysis.gram_matrix import PointSet, build_point_sets, compute_gram
from ailora.checkpoints import merge
from ailora.errors import InputError
from ailora.roles import Role
from tests.analysis.conftest import HEADS, KEY_HEADS, Made, load_all, make_settings
from tests.analysis.test_matrices import weights


def made(models: Made, base: str, points: str, *after: str) -> tuple[Any, list[PointSet]]:
    settings = make_settings(points=points)
    opened, others = load_all(models, base, settings, *map(models, after))
    return opened, build_point_sets(opened, others, settings, set())


@pytest.mark.parametrize("block", [1, 8 * 12 * 32 * 5, 128 * 2**20])
@pytest.mark.parametrize("points", ["layers", "heads"])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_any_block_gives_the_products_of_whole_weights(
    models: Made, base: str, points: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one row, of five rows (which do not divide the heads), and of everything."""
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    opened, found = made(models, base, points, f"{base}-full")
    assert [points.name for points in found] == ["query", "value"]
    for points_of_role in found:
        whole = [w for name in (base, f"{base}-full") for w in weights(models(name), points_of_role.name)]
        heads = 1 if points == "layers" else KEY_HEADS if (base, points_of_role.name) == ("llama", "value") else HEADS
        vectors = np.stack([part.ravel() for w in whole for part in np.split(w, heads)])
        assert compute_gram(opened, points_of_role) == pytest.approx(vectors @ vectors.T, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_an_adapter_is_added_without_merging(models: Made, base: str, tmp_path: Path) -> None:
    opened, (query, _) = made(models, base, "heads", f"{base}-adapter")
    merge(str(models(base)), models(f"{base}-adapter"), tmp_path / "merged")
    whole = weights(models(base), "query") + weights(tmp_path / "merged", "query")
    vectors = np.stack([part.ravel() for w in whole for part in np.split(w, HEADS)])
    # Merged weights are rounded to float32.
    assert compute_gram(opened, query) == pytest.approx(vectors @ vectors.T, rel=1e-6, abs=1e-5)


def counted(inner: Any, read: list[int]) -> Any:
    """The same function, which notes how many rows it was asked for."""

    def read_stored_rows(name: str, start: int, stop: int) -> object:
        read.append(stop - start)
        return inner(name, start, stop)

    return read_stored_rows


def test_no_more_than_a_block_is_read_at_once(models: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many points there are: more of them get fewer rows each, and every row is read once."""
    for names in ([], ["llama-full", "llama-other"]):
        opened, (query, _) = made(models, "llama", "layers", *names)
        block = 8 * 32 * 24
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
        read: list[int] = []
        for model in dict.fromkeys(point.model for point in query.points):
            monkeypatch.setattr(model, "read_stored_rows", counted(model.read_stored_rows, read))
        compute_gram(opened, query)
        assert max(read) * len(query.points) * 32 * 8 <= block
        assert sum(read) == 32 * len(query.points)


def test_heads_are_points_only_where_layers_are_few(models: Made) -> None:
    _, (query, value) = made(models, "llama", "auto")
    assert (len(query.points), len(value.points)) == (4 * HEADS, 4 * KEY_HEADS)
    _, (query, _) = made(models, "llama", "layers")
    assert len(query.points) == 4


def test_heads_are_refused_for_roles_without_heads(models: Made) -> None:
    settings = make_settings(points="heads", roles=(Role.QUERY, Role.OUTPUT))
    opened, _ = load_all(models, "llama", settings)
    with pytest.raises(InputError, match=r"'heads' needs projections .* \(role output\) has none"):
        build_point_sets(opened, [], settings, set())
