"""Distances between the weights of a role, across layers and across models, from Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from ailora.analysis.gram_matrix import Point, PointSet
from ailora.analysis.table_ops import Row, mean_interval
from ailora.analysis.weight_stats import layer_index

#: The jackknife leaves out a layer, and the dispersion of the rest is defined for at least two weights.
_MIN_LAYERS = 3


@dataclass(frozen=True)
class LayerGram:
    """Gram matrix of a role's whole weights, summed over heads.

    Attributes:
        name: Name of the point set.
        points: Point for each weight.
        products: Gram matrix (n, n) of the weights, float64.
    """

    name: str
    points: list[Point]
    products: np.ndarray

    def select_model(self, model: str) -> tuple[list[int], np.ndarray]:
        """Return the layer indices of a model's weights, and the Gram matrix of these weights."""
        rows = [i for i, point in enumerate(self.points) if point.model.name == model]
        layers = [layer_index(self.points[i].projection.module) for i in rows]
        return layers, self.products[np.ix_(rows, rows)]


def measure_dispersion(grams: Sequence[tuple[PointSet, np.ndarray]]) -> dict[str, list[Row]]:
    """Measure the distances within and between point sets.

    Args:
        grams: Point sets, each with its Gram matrix (n, n).

    Returns:
        Records of `analysis.json`: `layers` from `layer_dispersions`, and `between` from `model_distances`. For each
        pair of point sets and each model with the same layers in both, `differences` holds `model`, `roles` and the
        values of `compare_roles`.
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
    """Compute the Gram matrix of whole weights from the products of heads.

    Args:
        point_set: Points, in which the heads of a weight are adjacent.
        products: Gram matrix (n, n) of the points.

    Returns:
        Gram matrix with a point for each weight.
    """
    # In reverse order, the first head of a weight comes last and stays in the dictionary.
    points = list({(point.model.name, point.projection.module): point for point in reversed(point_set.points)}.values())
    points.reverse()
    count, heads = len(points), len(point_set.points) // len(points)
    # Heads are disjoint rows, so that <W, W'> is a sum over equal heads. Axes are [weight, head, weight', head'].
    products = np.einsum("ihjh->ij", products.reshape(count, heads, count, heads))
    return LayerGram(point_set.name, points, products)


def dispersion(products: np.ndarray) -> float:
    """Compute the dispersion of weights: 1 minus the mean cosine of all pairs.

    The dispersion is half the mean squared distance between the weights scaled to norm 1, in the space of all entries.
    It is 0 if all weights have the same direction, 1 if the weights are orthogonal (as random weights nearly are), and
    larger only if weights have opposite directions.

    Args:
        products: Gram matrix (n, n) of the weights of a role, n >= 2.

    Returns:
        Dispersion, without a unit. NaN if a weight is zero.
    """
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):  # 0 / 0: a weight of zeros has no direction
        cosines = products / np.outer(norms, norms)
    n = len(products)
    return float(1 - (cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def spread(products: np.ndarray) -> float:
    """Return the root mean square distance over all pairs of weights, in the unit of their entries.

    Args:
        products: Gram matrix (n, n) of the weights of a role, n >= 2.
    """
    n = len(products)
    squares = 2 * (n * np.trace(products) - products.sum())
    # If all weights are equal, rounding can make the sum negative.
    return float(np.sqrt(max(squares, 0.0) / (n * (n - 1))))


def norm_variation(products: np.ndarray) -> float:
    """Return the standard deviation of the weights' norms, relative to their mean, or NaN if all weights are zero."""
    norms = np.sqrt(np.diag(products))
    return float(norms.std(ddof=1)) / (float(norms.mean()) or float("nan"))


def layer_dispersions(gram: LayerGram) -> Iterator[Row]:
    """Measure the dispersion over the layers of each model, with a 95 % interval from the jackknife over layers.

    Args:
        gram: Gram matrix of a role's weights.

    Yields:
        Record for each model with at least three layers: `cloud` (the point set), `model`, `layers` (their number),
        `dispersion` and its interval `low` and `high`, `spread`, `norm_variation`.
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

    # Each sample leaves the same layer out of both roles, so that layers are paired.
    difference, low, high = jackknife(lambda a, b: dispersion(a) - dispersion(b), first, second)
    # A t-interval of the logarithm keeps both ends of the ratio positive.
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
    """Measure the distance of each pair of fine-tuned models, `|W_a - W_b| / |W|` with `W` of the base.

    Args:
        gram: Gram matrix of a role's weights.

    Yields:
        Record for each pair of models with shared fine-tuned modules: `cloud` (the point set), `models`, `by_layer`
        (the distance in each shared module), `distance` (their mean) and its t-interval `low` and `high`.
    """
    index = {(point.model.name, point.projection.module): i for i, point in enumerate(gram.points)}
    models = [model for model in dict.fromkeys(model for model, _ in index) if model != "base"]
    for first, second in combinations(models, 2):
        distances = []
        for module in (module for model, module in index if model == first and (second, module) in index):
            i, j, base = index[first, module], index[second, module], index["base", module]
            square = max(gram.products[i, i] + gram.products[j, j] - 2 * gram.products[i, j], 0.0)
            distances.append((float(square) / (float(gram.products[base, base]) or float("nan"))) ** 0.5)
        if distances:
            low, high = mean_interval(distances)
            record = {"cloud": gram.name, "models": [first, second], "by_layer": distances}
            yield record | {"distance": float(np.mean(distances)), "low": low, "high": high}


def jackknife(statistic: Callable[..., float], *grams: np.ndarray) -> tuple[float, float, float]:
    """Estimate a statistic of Gram matrices and its 95 % t-interval by the jackknife (Tukey, 1958).

    Args:
        statistic: Function of the Gram matrices.
        *grams: Gram matrices (n, n), all for the same n elements. Each sample leaves out one of these elements.

    Returns:
        Statistic of all elements, and the ends of its interval. The ends are NaN for fewer than three elements.
    """
    count, value = len(grams[0]), statistic(*grams)
    if count < _MIN_LAYERS:
        return value, float("nan"), float("nan")
    subsets = [np.delete(np.arange(count), i) for i in range(count)]
    values = np.array([statistic(*(gram[np.ix_(rows, rows)] for gram in grams)) for rows in subsets])
    error = np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, count - 1)) * float(error)
    return value, value - half, value + half
