"""Dispersion in cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ailora.analysis.dispersion import (
    compare_roles,
    dispersion,
    jackknife,
    measure_dispersion,
    norm_variation,
    spread,
    sum_over_heads,
)
from ailora.analysis.gram_matrix import build_point_sets, compute_gram
from ailora.analysis.table_ops import mean_interval
from tests.analysis.conftest import Made, load_all, make_settings
from tests.analysis.test_matrices import weights

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0]], 0.0),
        ([[1.0, 0.0], [0.0, 3.0]], 1.0),
        ([[1.0, 0.0], [-2.0, 0.0]], 2.0),
    ],
)
def test_the_scale_from_one_direction_to_opposite_ones(points: list[list[float]], expected: float) -> None:
    X = np.array(points)
    assert dispersion(X @ X.T) == pytest.approx(expected, abs=1e-12)


def test_dispersed_and_concentrated_roles_are_told_apart() -> None:
    """As the paper says of W^Q and W^V: one without a common direction, one with."""
    common = RANDOM.normal(size=500)
    query = RANDOM.normal(size=(6, 500))
    value = common + 0.3 * RANDOM.normal(size=(6, 500))
    found = compare_roles(query @ query.T, value @ value.T)
    assert found["low"] > 0.5
    unit = value / np.linalg.norm(value, axis=1)[:, None]
    pairs = [np.sum((unit[i] - unit[j]) ** 2) / 2 for i in range(6) for j in range(i)]
    assert dispersion(value @ value.T) == pytest.approx(np.mean(pairs))
    assert found["difference"] == pytest.approx(dispersion(query @ query.T) - np.mean(pairs))


def test_spread_and_norm_variation_against_numpy() -> None:
    X = RANDOM.normal(size=(5, 40)) * np.arange(1, 6)[:, None]
    pairs = [np.sum((X[i] - X[j]) ** 2) for i in range(5) for j in range(i)]
    assert spread(X @ X.T) == pytest.approx(np.sqrt(np.mean(pairs)))
    norms = np.linalg.norm(X, axis=1)
    assert norm_variation(X @ X.T) == pytest.approx(norms.std(ddof=1) / norms.mean())
    twice = compare_roles(4 * X @ X.T, X @ X.T)
    assert (twice["ratio"], twice["ratio_low"], twice["ratio_high"]) == pytest.approx((2, 2, 2))
    assert (twice["difference"], twice["low"], twice["high"]) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = RANDOM.normal(size=7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    estimate = jackknife(lambda gram: float(np.diag(gram).mean()), np.diag(values))
    assert estimate == pytest.approx((values.mean(), *expected))
    assert mean_interval(list(values)) == pytest.approx(expected)
    assert np.isnan(jackknife(lambda gram: float(np.diag(gram).mean()), np.eye(2))[1:]).all()


@pytest.mark.parametrize("points", ["heads", "layers"])
def test_layers_are_compared_whatever_the_points_are(models: Made, points: str) -> None:
    settings = make_settings(points=points)
    base, after = load_all(models, "llama", settings, models("llama-full"), models("llama-other"))
    grams = [(points, compute_gram(base, points)) for points in build_point_sets(base, after, settings, set())]
    value = sum_over_heads(*grams[1])
    assert [(p.model.name, p.projection.module.split(".")[2]) for p in value.points[3:6]] == [
        ("base", "3"),
        ("llama-full", "0"),
        ("llama-full", "1"),
    ]
    X = np.stack(
        [w.ravel() for n in ("llama", "llama-full", "llama-other") for w in weights(models(n), "value")],
    )
    assert value.products == pytest.approx(X @ X.T, rel=1e-12)
    found = measure_dispersion(grams)
    assert [(r["model"], r["cloud"]) for r in found["layers"][:3]] == [
        ("base", "query"),
        ("llama-full", "query"),
        ("llama-other", "query"),
    ]
    between = next(record for record in found["between"] if record["cloud"] == "value")
    apart = [np.linalg.norm(X[4 + i] - X[8 + i]) / np.linalg.norm(X[i]) for i in range(4)]
    assert between["by_layer"] == pytest.approx(apart)
    assert between["distance"] == pytest.approx(np.mean(apart))
