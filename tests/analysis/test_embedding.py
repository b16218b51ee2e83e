"""Points in the plane."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from ailora.analysis.embedding import choose_perplexity, embed, principal_coordinates
from ailora.analysis.gram_matrix import Point, PointSet
from ailora.roles import Attention, Projection, Role
from tests.analysis.conftest import make_settings

RANDOM = np.random.default_rng(1)


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


def point_set(count: int, models: int = 1) -> PointSet:
    points = []
    for model in range(models):
        name = "base" if model == 0 else f"after {model}"
        for layer in range(count):
            p = Projection(f"layers.{layer}.q", Role.QUERY, Attention.SELF, ((0, 4),), (4, 4), "float32", "x")
            points.append(Point(Named(name), p, None, p.rows))  # pyright: ignore[reportArgumentType]
    return PointSet("query", tuple(points))


def test_coordinates_have_the_distances_of_the_points() -> None:
    X = RANDOM.normal(size=(9, 100))
    points, variances = principal_coordinates(X @ X.T)
    assert points.shape == (9, 8)
    assert pdist(points) == pytest.approx(pdist(X))
    assert variances == pytest.approx(sorted(points.var(axis=0), reverse=True))
    assert variances.sum() == pytest.approx(((X - X.mean(axis=0)) ** 2).sum() / 9)


def test_two_groups_are_two_groups_in_both_pictures() -> None:
    X = RANDOM.normal(size=(24, 50))
    X[12:] += 8
    made = embed(point_set(24), X @ X.T, make_settings())
    for kind in ("pca", "tsne"):
        plane = np.array([[row[f"{kind}_x"], row[f"{kind}_y"]] for row in made.rows])
        first, second = plane[:12], plane[12:]
        within = max(pdist(first).max(), pdist(second).max())
        assert np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > within / 2
    info = made.info
    assert info["perplexity"] == 23 / 4
    assert info["seed"] in (0, 1, 2)
    assert min(info["tsne_trustworthiness"].values()) > 0.8
    assert info["agreement"] > 0.5
    assert info["explained"][0] > 0.8
    assert made.rows == embed(point_set(24), X @ X.T, make_settings()).rows


def test_too_few_points_have_a_pca_alone() -> None:
    X = RANDOM.normal(size=(3, 50))
    made = embed(point_set(3), X @ X.T, make_settings())
    assert "perplexity" not in made.info
    assert np.isnan(made.rows[0]["tsne_x"])
    assert made.info["explained"][0] + made.info["explained"][1] == pytest.approx(1)


def test_equal_points_do_not_fail() -> None:
    X = np.ones((10, 5))
    made = embed(point_set(5, models=2), X @ X.T, make_settings(seeds=(0,)))
    assert all(row["pca_x"] == 0 for row in made.rows)
    assert "perplexity" not in made.info


@pytest.mark.parametrize("points", [8, 24, 72, 400])
def test_the_perplexity_is_below_a_third_of_the_points(points: int) -> None:
    for asked in (None, 5.0, 1000.0):
        assert choose_perplexity(points, asked) < points / 3
    assert choose_perplexity(72, 5.0) == 5
    assert choose_perplexity(1000, None) == 30
