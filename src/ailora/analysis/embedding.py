"""Embeddings in the plane by t-SNE, and by PCA as a check: with few points, t-SNE shows clusters even in noise."""

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

#: Fewest points for t-SNE. Fewer points are embedded by PCA only.
_MIN_TSNE_POINTS = 8
#: Fewest points for which t-SNE approximates the gradient, because the exact gradient takes O(n^2) time.
_MIN_BARNES_HUT_POINTS = 2000


@dataclass(frozen=True)
class Embedding:
    """Embedding of a point set in the plane.

    Attributes:
        rows: Row of the table `embedding` for each point.
        info: Settings and quality of the embedding, a record of `analysis.json`.
    """

    rows: list[Row]
    info: Row


def embed(point_set: PointSet, products: np.ndarray, settings: AnalysisSettings) -> Embedding:
    """Embed a point set in the plane by t-SNE and by PCA.

    Args:
        point_set: Points to embed.
        products: Gram matrix (n, n) of the points.
        settings: Perplexity and seeds.

    Returns:
        Embedding. Rows hold `pca_x`, `pca_y` in the unit of the weights, and `tsne_x`, `tsne_y`. For fewer than eight
        points and for points on a line, `tsne_x` and `tsne_y` are NaN, and the info lacks the keys from `perplexity`
        on:

        - `cloud`: name of the point set.
        - `points`: number of points.
        - `heads`: whether each point is the part of a weight that belongs to one head.
        - `explained`: shares of the variance along both PCA axes.
        - `perplexity`: perplexity of t-SNE.
        - `pca_trustworthiness`, and `tsne_trustworthiness` by seed: 1 if all neighbours in the plane are also
          neighbours in the original space (Venna and Kaski, 2001).
        - `neighbours`: number of nearest neighbours that trustworthiness compares.
        - `agreement`: Spearman correlation between the pairwise distances in the embeddings of two seeds, averaged over
          all pairs of seeds. NaN for a single seed.
        - `seed`: seed of the returned t-SNE embedding, which has the lowest Kullback-Leibler divergence.
    """
    coordinates, variances = principal_coordinates(products)
    n, points = len(products), point_set.points
    pca, tsne = np.zeros((n, 2)), np.full((n, 2), np.nan)
    pca[:, : coordinates.shape[1]] = coordinates[:, :2]
    # The variance is zero for equal points.
    total_variance = float(variances.sum()) or 1.0
    info: Row = {
        "cloud": point_set.name,
        "points": n,
        "heads": points[0].head is not None,
        # Equal points have no axis, and points on a line have one. Zeros stand for the missing axes.
        "explained": [float(variance) / total_variance for variance in (*variances, 0.0, 0.0)[:2]],
    }
    if n >= _MIN_TSNE_POINTS and coordinates.shape[1] > 1:
        n_models = len({point.model.name for point in points})
        # Number of neighbours for the trustworthiness, by default 5 in scikit-learn. The nearest points to a weight are
        # often the same weight in other models, so twice as many neighbours as models include other layers too.
        # scikit-learn allows less than half of the points.
        neighbours = min(max(5, 2 * n_models), (n - 1) // 2)
        tsne, tsne_info = _tsne(coordinates, settings, neighbours)
        trust = float(trustworthiness(coordinates, pca, n_neighbors=neighbours))
        info |= tsne_info | {"neighbours": neighbours, "pca_trustworthiness": trust}
    rows = [
        {
            "model": point.model.name,
            **projection_columns(point.projection),
            "head": -1 if point.head is None else point.head,
            "cloud": point_set.name,
            **dict(zip(("pca_x", "pca_y", "tsne_x", "tsne_y"), xy, strict=True)),
        }
        for point, xy in zip(points, np.hstack([pca, tsne]), strict=True)
    ]
    return Embedding(rows, info)


def principal_coordinates(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the principal coordinates of points from their Gram matrix (classical scaling; Torgerson, 1952).

    Args:
        products: Gram matrix (n, n).

    Returns:
        Coordinates (n, d) along the principal axes, d < n, and the variance (d,) along each axis. Each axis points in
        the direction in which the cubes of the coordinates have a positive sum.
    """
    # scikit-learn's KernelPCA is not used: for almost equal points, it raises an error because of rounding.
    centred = products - products.mean(axis=0) - products.mean(axis=1)[:, None] + products.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Centring makes an eigenvalue zero, up to a rounding error of either sign.
    positive = values > max(values[0], 0.0) * 1e-12
    coordinates = vectors[:, positive] * np.sqrt(values[positive])
    # `eigh` returns axes with arbitrary signs. Without this rule, some machines would mirror the chart.
    coordinates *= np.where((coordinates**3).sum(axis=0) < 0, -1.0, 1.0)
    return coordinates, values[positive] / len(products)


def choose_perplexity(points: int, perplexity: float | None) -> float:
    """Choose the perplexity of t-SNE.

    Args:
        points: Number of points.
        perplexity: Requested perplexity, or None for the default.

    Returns:
        Requested perplexity, limited to (points - 1) / 3. Without a request, (points - 1) / 4, limited to 30.
    """
    # t-SNE uses about `3 * perplexity` neighbours of each point. 30 is scikit-learn's default.
    return min(30.0, (points - 1) / 4) if perplexity is None else min(perplexity, (points - 1) / 3)


def _tsne(coordinates: np.ndarray, settings: AnalysisSettings, neighbours: int) -> tuple[np.ndarray, Row]:
    """Embed points by t-SNE with each seed. Return the embedding with the lowest divergence, and its info."""
    n = len(coordinates)
    perplexity = choose_perplexity(n, settings.perplexity)
    # The scale does not matter for t-SNE, but scikit-learn stores squared distances in float32, in which those of
    # small weights would underflow.
    scaled = coordinates / (coordinates.std() or 1.0)
    embeddings, divergences = [], []
    for seed in settings.seeds:
        tsne = TSNE(
            perplexity=perplexity,
            # With a start from PCA, all seeds would give the same embedding, and their agreement would mean nothing.
            init="random",
            random_state=seed,
            method="exact" if n < _MIN_BARNES_HUT_POINTS else "barnes_hut",
            n_jobs=1,
        )
        embeddings.append(tsne.fit_transform(scaled))
        divergences.append(float(tsne.kl_divergence_))
    best = int(np.argmin(divergences))
    trust = [float(trustworthiness(coordinates, embedding, n_neighbors=neighbours)) for embedding in embeddings]
    return embeddings[best], {
        "perplexity": perplexity,
        "seed": settings.seeds[best],
        "tsne_trustworthiness": {str(seed): value for seed, value in zip(settings.seeds, trust, strict=True)},
        "agreement": _seed_agreement(embeddings),
    }


def _seed_agreement(embeddings: Sequence[np.ndarray]) -> float:
    """Return the mean Spearman correlation of distances over all pairs of embeddings (n, 2), or NaN without a pair."""
    distances = [pdist(embedding) for embedding in embeddings]
    # `spearmanr` returns the correlation and its p-value.
    correlations = [float(np.asarray(spearmanr(a, b))[0]) for a, b in combinations(distances, 2)]
    return float(np.mean(correlations)) if correlations else float("nan")
