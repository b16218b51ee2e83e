"""Points in the plane: t-SNE, and PCA beside it, as t-SNE of few points shows clusters where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.manifold import TSNE, trustworthiness

from ailora.analysis.analysis_settings import AnalysisSettings
from ailora.analysis.gram_matrix import PointSet
from ailora.analysis.table_ops import Row
from ailora.analysis.weight_stats import projection_columns

#: With fewer points t-SNE has nothing to say.
_MIN_TSNE_POINTS = 8
#: From so many points on, t-SNE takes its approximate gradient.
_MIN_BARNES_HUT_POINTS = 2000


@dataclass(frozen=True)
class Embedding:
    """A point set in the plane.

    Attributes:
        rows: a row of the table for each point.
        info: settings, and how far the picture can be trusted.
    """

    rows: list[Row]
    info: Row


def embed(point_set: PointSet, products: np.ndarray, settings: AnalysisSettings) -> Embedding:
    """Compute t-SNE and PCA of a point set.

    Args:
        point_set: the points.
        products: their Gram matrix (n, n).
        settings: perplexity and seeds.

    Returns:
        Rows with `pca_x`, `pca_y`, in the weights' own units, and `tsne_x`, `tsne_y`, NaN of fewer than eight
        points or of points on a line.
        The info: `perplexity`; `explained`, the shares of the variance along both axes of the PCA;
        `trustworthiness` (Venna and Kaski, 2001: 1 where all neighbours in the plane are neighbours in the space) of
        the PCA and of t-SNE by seed; `agreement`, the mean Spearman correlation of the distances in the plane over all
        pairs of seeds; `seed`, whose picture has the lowest divergence.
    """
    coordinates, variances = principal_coordinates(products)
    n, points = len(products), point_set.points
    pca, tsne = np.zeros((n, 2)), np.full((n, 2), np.nan)
    pca[:, : coordinates.shape[1]] = coordinates[:, :2]
    total = float(variances.sum()) or 1.0
    info: Row = {
        "cloud": point_set.name,
        "points": n,
        "heads": points[0].head is not None,
        "explained": [float(v) / total for v in (*variances, 0.0, 0.0)[:2]],
    }
    if n >= _MIN_TSNE_POINTS and coordinates.shape[1] > 1:
        models = len({point.model.name for point in points})
        neighbours = min(max(5, 2 * models), (n - 1) // 2)
        tsne, tsne_info = _tsne(coordinates, settings, neighbours)
        trust = float(trustworthiness(coordinates, pca, n_neighbors=neighbours))
        info |= tsne_info | {"neighbours": neighbours, "pca_trustworthiness": trust}
    rows = [
        {
            "model": point.model.name,
            **projection_columns(point.projection),
            "head": -1 if point.head is None else point.head,
            "cloud": point_set.name,
            **dict(zip(("pca_x", "pca_y", "tsne_x", "tsne_y"), coordinates, strict=True)),
        }
        for point, coordinates in zip(points, np.hstack([pca, tsne]), strict=True)
    ]
    return Embedding(rows, info)


def principal_coordinates(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute points (n, d), d < n, along their principal axes from their Gram matrix, and the variance of each axis.

    This is classical scaling (Torgerson, 1952). The entries of an axis have a positive sum of cubes, so that the
    picture does not flip. (scikit-learn's KernelPCA refuses the rounding of almost equal points.)
    """
    centred = products - products.mean(axis=0) - products.mean(axis=1)[:, None] + products.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(values[0], 0.0) * 1e-12
    points = vectors[:, kept] * np.sqrt(values[kept])
    points *= np.where((points**3).sum(axis=0) < 0, -1.0, 1.0)
    return points, values[kept] / len(products)


def choose_perplexity(points: int, perplexity: float | None) -> float:
    """Choose the perplexity of t-SNE: a quarter of the points but 30 at most, or what was asked for, below a third."""
    return min(30.0, (points - 1) / 4) if perplexity is None else min(perplexity, (points - 1) / 3)


def _tsne(coordinates: np.ndarray, settings: AnalysisSettings, neighbours: int) -> tuple[np.ndarray, Row]:
    n = len(coordinates)
    perplexity = choose_perplexity(n, settings.perplexity)
    scaled = coordinates / (coordinates.std() or 1.0)
    pictures, divergences = [], []
    for seed in settings.seeds:
        tsne = TSNE(
            perplexity=perplexity,
            init="random",
            random_state=seed,
            method="exact" if n < _MIN_BARNES_HUT_POINTS else "barnes_hut",
            n_jobs=1,
        )
        pictures.append(tsne.fit_transform(scaled))
        divergences.append(float(tsne.kl_divergence_))
    best = int(np.argmin(divergences))
    trust = [float(trustworthiness(coordinates, picture, n_neighbors=neighbours)) for picture in pictures]
    return pictures[best], {
        "perplexity": perplexity,
        "seed": settings.seeds[best],
        "tsne_trustworthiness": {str(seed): value for seed, value in zip(settings.seeds, trust, strict=True)},
        "agreement": _agreement(pictures),
    }


def _agreement(pictures: Sequence[np.ndarray]) -> float:
    pairs = list(combinations([pdist(picture) for picture in pictures], 2))
    return float(np.mean([float(np.asarray(spearmanr(a, b))[0]) for a, b in pairs])) if pairs else float("nan")
