"""Dispersion in cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ailora.analysis.analysis_settings import Settings
from ailora.analysis.dispersion import (
    difference,
    dispersion,
    dispersions,
    jackknife,
    layer_gram,
    mean_interval,
    norm_variation,
    spread,
)
from ailora.analysis.gram_matrix import clouds, gram
from ailora.analysis.load_models import open_after, open_base
from tests.analysis.conftest import Made
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
    found = difference(query @ query.T, value @ value.T)
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
    twice = difference(4 * X @ X.T, X @ X.T)
    assert (twice["ratio"], twice["ratio_low"], twice["ratio_high"]) == pytest.approx((2, 2, 2))
    assert (twice["difference"], twice["low"], twice["high"]) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = RANDOM.normal(size=7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert jackknife(lambda kept: float(values[kept].mean()), 7) == pytest.approx(expected)
    assert mean_interval(list(values)) == pytest.approx(expected)
    assert np.isnan(jackknife(lambda kept: float(values[kept].mean()), 2)).all()


@pytest.mark.parametrize("points", ["heads", "layers"])
def test_layers_are_compared_whatever_the_points_are(models: Made, points: str) -> None:
    settings = Settings(points=points)  # pyright: ignore[reportArgumentType]
    base = open_base(str(models("llama")), settings)
    after = [open_after(str(models(n)), n, base, str(models("llama"))) for n in ("llama-full", "llama-other")]
    made = [(cloud, gram(base, cloud)) for cloud in clouds(base, after, settings, set())]
    firsts, products = layer_gram(*made[1])
    assert [(p.model.name, p.projection.module.split(".")[2]) for p in firsts[3:6]] == [
        ("base", "3"),
        ("llama-full", "0"),
        ("llama-full", "1"),
    ]
    X = np.stack(
        [w.ravel() for n in ("llama", "llama-full", "llama-other") for w in weights(models(n), "value")],
    )
    assert products == pytest.approx(X @ X.T, rel=1e-12)
    found = dispersions(made)
    assert [(r["model"], r["cloud"]) for r in found["layers"][:3]] == [
        ("base", "query"),
        ("llama-full", "query"),
        ("llama-other", "query"),
    ]
    between = next(record for record in found["between"] if record["cloud"] == "value")
    apart = [np.linalg.norm(X[4 + i] - X[8 + i]) / np.linalg.norm(X[i]) for i in range(4)]
    assert between["by_layer"] == pytest.approx(apart)
    assert between["distance"] == pytest.approx(np.mean(apart))
