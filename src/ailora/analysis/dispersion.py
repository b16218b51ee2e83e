"""Distances between the weights of a role, across layers and across models, computed from Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from ailora.analysis.gram_matrix import Point, PointSet
from ailora.analysis.table_ops import Row, mean_interval
from ailora.analysis.weight_stats import layer_index

#: Fewest layers for the jackknife. Each sample leaves out a layer, and the dispersion needs at least two weights.
_MIN_LAYERS = 3


@dataclass(frozen=True)
class LayerGram:
    """Gram matrix of the weights of a role, with a point for each whole weight, even if the set has heads.

    Attributes:
        name: Name of the point set.
        points: Point for each weight.
        products: Gram matrix (n, n) of the weights, float64.
    """

    name: str
    points: list[Point]
    products: np.ndarray

    def select_model(self, model: str) -> tuple[list[int], np.ndarray]:
        """Select the weights of a model, and return their layer indices and their Gram matrix."""
        rows = [i for i, point in enumerate(self.points) if point.model.name == model]
        layers = [layer_index(self.points[i].projection.module) for i in rows]
        return layers, self.products[np.ix_(rows, rows)]


def measure_dispersion(grams: Sequence[tuple[PointSet, np.ndarray]]) -> dict[str, list[Row]]:
    """Measure the dispersion over layers, compare it between roles, and measure the distances between models.

    Args:
        grams: Point sets, each with its Gram matrix (n, n).

    Returns:
        Records of `analysis.json`:

        - `layers`: records of `layer_dispersions`.
        - `differences`: `model`, `roles` and the values of `compare_roles`, for each pair of point sets and each model
          with the same layers in both sets.
        - `between`: records of `model_distances`.
    """
    layer_grams = [sum_over_heads(point_set, products) for point_set, products in grams]
    models = dict.fromkeys(point.model.name for gram in layer_grams for point in gram.points)
    differences = []
    for first, second in combinations(layer_grams, 2):
        for model in models:
            (layers, a), (other_layers, b) = first.select_model(model), second.select_model(model)
            # The jackknife pairs the roles by layer.
            if layers == other_layers and len(layers) >= _MIN_LAYERS:
                differences.append({"model": model, "roles": [first.name, second.name], **compare_roles(a, b)})
    return {
        "layers": [record for gram in layer_grams for record in layer_dispersions(gram)],
        "differences": differences,
        "between": [record for gram in layer_grams for record in model_distances(gram)],
    }


def sum_over_heads(point_set: PointSet, products: np.ndarray) -> LayerGram:
    """Compute the Gram matrix of whole weights from the Gram matrix of their heads.

    Args:
        point_set: Whole weights, or heads in an order in which the heads of a weight are adjacent.
        products: Gram matrix (n, n) of the points.

    Returns:
        Gram matrix with a single point for each weight.
    """
    # A later entry replaces an earlier entry with the same key: in reverse order, the first head of a weight remains.
    points = list({(point.model.name, point.projection.module): point for point in reversed(point_set.points)}.values())
    points.reverse()
    count, heads = len(points), len(point_set.points) // len(points)
    # Heads are disjoint rows, so <W, W'> is the sum of <W_h, W'_h> over heads h. Axes: [weight, head, weight', head'].
    products = np.einsum("ihjh->ij", products.reshape(count, heads, count, heads))
    return LayerGram(point_set.name, points, products)


def dispersion(products: np.ndarray) -> float:
    """Compute the dispersion of weights: 1 minus the mean cosine of all pairs.

    The dispersion is half the mean squared distance between the weights after scaling each to norm 1. It is 0 if all
    weights are positive multiples of each other, and 1 if all weights are orthogonal, as random weights nearly are.
    Larger values require negative cosines.

    Args:
        products: Gram matrix (n, n) of the weights of a role, n >= 2.

    Returns:
        Dispersion, without a unit. NaN if a weight is zero.
    """
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):  # 0 / 0, because a weight of zeros has no direction
        cosines = products / np.outer(norms, norms)
    n = len(products)
    return float(1 - (cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def spread(products: np.ndarray) -> float:
    """Compute the root mean square distance over all pairs of weights.

    Args:
        products: Gram matrix (n, n) of the weights of a role, n >= 2.

    Returns:
        Distance, in the unit of the weights.
    """
    n = len(products)
    # Sum of |W_i - W_j|^2 over all ordered pairs (i, j).
    sum_of_squares = 2 * (n * np.trace(products) - products.sum())
    # If all weights are equal, rounding can make the sum negative.
    return float(np.sqrt(max(sum_of_squares, 0.0) / (n * (n - 1))))


def norm_variation(products: np.ndarray) -> float:
    """Return the standard deviation of the norms relative to the mean norm, or NaN if all weights are zero."""
    norms = np.sqrt(np.diag(products))
    return float(norms.std(ddof=1)) / (float(norms.mean()) or float("nan"))


def layer_dispersions(gram: LayerGram) -> Iterator[Row]:
    """Measure the dispersion over the layers of each model, with a 95 % jackknife interval.

    Args:
        gram: Gram matrix of a role's weights.

    Yields:
        Record for each model with at least three layers: `cloud` (name of the point set), `model`, `layers` (number of
        layers), `dispersion` with its interval `low` and `high`, `spread`, and `norm_variation`.
    """
    for model in dict.fromkeys(point.model.name for point in gram.points):
        layers, products = gram.select_model(model)
        if len(layers) >= _MIN_LAYERS:
            value, low, high = jackknife(dispersion, products)
            yield {"cloud": gram.name, "model": model, "layers": len(layers)} | {
                "dispersion": value,
                "low": low,
                "high": high,
                "spread": spread(products),
                "norm_variation": norm_variation(products),
            }


def compare_roles(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Compare the dispersion and the spread of two roles over the same layers.

    Args:
        first: Gram matrix (n, n) of the first role.
        second: Gram matrix (n, n) of the second role, for the same layers in the same order.

    Returns:
        Comparison of the first role with the second:

        - `difference`, `low`, `high`: difference of the dispersions, with its interval.
        - `ratio`, `ratio_low`, `ratio_high`: ratio of the spreads, with its interval.
    """

    def log_ratio(a: np.ndarray, b: np.ndarray) -> float:
        spreads = spread(a), spread(b)
        return float(np.log(spreads[0] / spreads[1])) if min(spreads) > 0 else float("nan")

    # The samples are paired: each leaves the same layer out of both roles.
    difference, low, high = jackknife(lambda a, b: dispersion(a) - dispersion(b), first, second)
    # The t-interval of the logarithm gives an interval of the ratio with positive ends.
    ratio, ratio_low, ratio_high = map(float, np.exp(jackknife(log_ratio, first, second)))
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "ratio": ratio,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
    }


def model_distances(gram: LayerGram) -> Iterator[Row]:
    """Measure the distance between fine-tuned models, `|W_a - W_b| / |W|` with the base weight `W`.

    Args:
        gram: Gram matrix of a role's weights.

    Yields:
        Record for each pair of models that update at least one module in common: `cloud` (name of the point set),
        `models`, `layer_indices` (layer of each common module), `by_layer` (distance in each common module), and
        `distance` (mean distance) with its t-interval `low` and `high`.
    """
    index = {(point.model.name, point.projection.module): i for i, point in enumerate(gram.points)}
    models = [model for model in dict.fromkeys(model for model, _ in index) if model != "base"]
    for first, second in combinations(models, 2):
        modules = [module for model, module in index if model == first and (second, module) in index]
        distances = []
        for module in modules:
            i, j, base = index[first, module], index[second, module], index["base", module]
            # For equal weights, rounding can make the squared distance negative.
            squared_distance = max(gram.products[i, i] + gram.products[j, j] - 2 * gram.products[i, j], 0.0)
            squared_norm = float(gram.products[base, base]) or float("nan")
            distances.append((float(squared_distance) / squared_norm) ** 0.5)
        if distances:
            low, high = mean_interval(distances)
            record = {"cloud": gram.name, "models": [first, second], "layer_indices": [*map(layer_index, modules)]}
            yield record | {"by_layer": distances, "distance": float(np.mean(distances)), "low": low, "high": high}


def jackknife(statistic: Callable[..., float], *grams: np.ndarray) -> tuple[float, float, float]:
    """Estimate a statistic of Gram matrices and its 95 % t-interval by the jackknife (Tukey, 1958).

    Args:
        statistic: Function of the Gram matrices.
        *grams: Gram matrices (n, n), all of the same n layers. Each sample leaves out a layer in all matrices.

    Returns:
        Statistic of all layers, and the ends of its interval. The ends are NaN for fewer than three layers.
    """
    count, value = len(grams[0]), statistic(*grams)
    if count < _MIN_LAYERS:
        return value, float("nan"), float("nan")
    subsets = [np.delete(np.arange(count), i) for i in range(count)]
    values = np.array([statistic(*(gram[np.ix_(rows, rows)] for gram in grams)) for rows in subsets])
    standard_error = np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
    half_width = float(stats.t.ppf(0.975, count - 1)) * float(standard_error)
    return value, value - half_width, value + half_width
