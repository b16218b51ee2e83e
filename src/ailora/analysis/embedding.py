"""Points in the plane: t-SNE, and PCA beside it, as t-SNE of few points shows clusters where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.manifold import TSNE, trustworthiness

from ailora.analysis.analysis_settings import Settings
from ailora.analysis.gram_matrix import Cloud
from ailora.analysis.weight_stats import identity_of

#: With fewer points t-SNE has nothing to say.
_FEWEST = 8
#: From so many points on, t-SNE takes its approximate gradient.
_MANY = 2000


@dataclass(frozen=True)
class Embedded:
    """A cloud in the plane.

    Attributes:
        rows: a row of the table for each point.
        facts: what was done, and how far it can be trusted.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any]


def embed(cloud: Cloud, products: np.ndarray, settings: Settings) -> Embedded:
    """t-SNE and PCA of a cloud.

    Args:
        cloud: the points.
        products: their Gram matrix (n, n).
        settings: perplexity and seeds.

    Returns:
        Rows with `pca_x`, `pca_y`, in the weights' own units, and `tsne_x`, `tsne_y`, NaN of fewer than eight
        points or of points on a line.
        The facts: `perplexity`; `explained`, the shares of the variance along both axes of the PCA;
        `trustworthiness` (Venna and Kaski, 2001: 1 where all neighbours in the plane are neighbours in the space) of
        the PCA and of t-SNE by seed; `agreement`, the mean Spearman correlation of the distances in the plane over all
        pairs of seeds; `seed`, whose picture has the lowest divergence.
    """
    coordinates, variances = exact_coordinates(products)
    n = len(products)
    plane = np.zeros((n, 2))
    plane[:, : coordinates.shape[1]] = coordinates[:, :2]
    total = float(variances.sum()) or 1.0
    facts: dict[str, Any] = {
        "cloud": cloud.name,
        "points": n,
        "heads": cloud.points[0].head is not None,
        "explained": [float(v) / total for v in (*variances, 0.0, 0.0)[:2]],
    }
    picture = np.full((n, 2), np.nan)
    if n >= _FEWEST and coordinates.shape[1] > 1:
        models = len({point.model.name for point in cloud.points})
        neighbours = min(max(5, 2 * models), (n - 1) // 2)
        made, more = _tsne(coordinates, settings, neighbours)
        trusted = float(trustworthiness(coordinates, plane, n_neighbors=neighbours))
        facts |= more | {"neighbours": neighbours, "pca_trustworthiness": trusted}
        picture = made
    rows = [
        {
            "model": point.model.name,
            **identity_of(point.projection),
            "head": -1 if point.head is None else point.head,
            "cloud": cloud.name,
            "pca_x": plane[i, 0],
            "pca_y": plane[i, 1],
            "tsne_x": picture[i, 0],
            "tsne_y": picture[i, 1],
        }
        for i, point in enumerate(cloud.points)
    ]
    return Embedded(rows, facts)


def exact_coordinates(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, d) with the distances that a Gram matrix says, d < n, along their principal axes, and the variance
    along each (classical scaling; Torgerson, 1952). The larger half of each axis's entries is positive in sum of cubes,
    so that the picture does not flip."""
    centred = products - products.mean(axis=0) - products.mean(axis=1)[:, None] + products.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(values[0], 0.0) * 1e-12
    points = vectors[:, kept] * np.sqrt(values[kept])
    points *= np.where((points**3).sum(axis=0) < 0, -1.0, 1.0)
    return points, values[kept] / len(products)


def chosen_perplexity(points: int, asked: float | None) -> float:
    """The perplexity of t-SNE: a quarter of the points but 30 at most, or what was asked for, below a third."""
    return min(asked if asked is not None else 30.0, (points - 1) / 4 if asked is None else (points - 1) / 3)


def _tsne(coordinates: np.ndarray, settings: Settings, neighbours: int) -> tuple[np.ndarray, dict[str, Any]]:
    n = len(coordinates)
    perplexity = chosen_perplexity(n, settings.perplexity)
    scaled = coordinates / (coordinates.std() or 1.0)
    pictures, divergences = [], []
    for seed in settings.seeds:
        method = TSNE(
            perplexity=perplexity,
            init="random",
            random_state=seed,
            method="exact" if n < _MANY else "barnes_hut",
            n_jobs=1,
        )
        pictures.append(method.fit_transform(scaled))
        divergences.append(float(method.kl_divergence_))
    best = int(np.argmin(divergences))
    trusted = {
        str(seed): float(trustworthiness(coordinates, picture, n_neighbors=neighbours))
        for seed, picture in zip(settings.seeds, pictures, strict=True)
    }
    return pictures[best], {
        "perplexity": perplexity,
        "seed": settings.seeds[best],
        "tsne_trustworthiness": trusted,
        "agreement": _agreement(pictures),
    }


def _agreement(pictures: Sequence[np.ndarray]) -> float:
    pairs = list(combinations([pdist(picture) for picture in pictures], 2))
    return float(np.mean([float(np.asarray(spearmanr(a, b))[0]) for a, b in pairs])) if pairs else float("nan")
