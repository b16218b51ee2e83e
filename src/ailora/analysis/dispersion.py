"""Distances between the weights of one role, over the layers of a model and between models, from Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from ailora.analysis.gram_matrix import Point, PointSet
from ailora.analysis.table_ops import Row, mean_interval
from ailora.analysis.weight_stats import layer_index

#: With fewer layers there is no interval.
_MIN_LAYERS = 3


@dataclass(frozen=True)
class LayerGram:
    """Products of whole weights of one role.

    Attributes:
        name: of the point set.
        points: one for each weight.
        products: Gram matrix (n, n) of the weights.
    """

    name: str
    points: list[Point]
    products: np.ndarray

    def of_model(self, model: str) -> tuple[list[int], np.ndarray]:
        """Select the layers of a model and their products."""
        rows = [i for i, point in enumerate(self.points) if point.model.name == model]
        layers = [layer_index(self.points[i].projection.module) for i in rows]
        return layers, self.products[np.ix_(rows, rows)]


def measure_dispersion(grams: Sequence[tuple[PointSet, np.ndarray]]) -> dict[str, list[Row]]:
    """Measure all distances of point sets with their Gram matrices.

    Returns:
        `layers`: See `layer_dispersions`. `differences`: for each two point sets and each model that has the same
        layers in both, `model`, `roles`, and the values of `compare_roles`. `between`: See `model_distances`.
    """
    weights = [sum_over_heads(point_set, products) for point_set, products in grams]
    models = dict.fromkeys(point.model.name for gram in weights for point in gram.points)
    differences = []
    for this, that in combinations(weights, 2):
        for model in models:
            (layers, a), (others, b) = this.of_model(model), that.of_model(model)
            if layers == others and len(layers) >= _MIN_LAYERS:
                differences.append({"model": model, "roles": [this.name, that.name], **compare_roles(a, b)})
    return {
        "layers": [record for gram in weights for record in layer_dispersions(gram)],
        "differences": differences,
        "between": [record for gram in weights for record in model_distances(gram)],
    }


def sum_over_heads(point_set: PointSet, products: np.ndarray) -> LayerGram:
    """Compute the products of whole weights, which are the sums over their heads, with one point for each weight."""
    firsts = list({(point.model.name, point.projection.module): point for point in reversed(point_set.points)}.values())
    firsts.reverse()
    count, heads = len(firsts), len(point_set.points) // len(firsts)
    # Heads of a weight follow each other: [weight, head, weight', head'], of which equal heads count.
    products = np.einsum("ihjh->ij", products.reshape(count, heads, count, heads))
    return LayerGram(point_set.name, firsts, products)


def dispersion(products: np.ndarray) -> float:
    """Compute the dispersion of weights: `1 - ` the mean cosine of all pairs.

    That is half the mean squared distance of the weights scaled to norm 1, a number without a scale: 0 where all point
    in one direction, 1 where they have nothing in common (random weights), more only where they oppose each other.
    It is taken in the space of all entries, not in a picture.

    Args:
        products: Gram matrix (n, n) of the weights of one role, n >= 2.
    """
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):  # a weight of zeros has no direction
        cosines = products / np.outer(norms, norms)
    n = len(products)
    return float(1 - (cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def spread(products: np.ndarray) -> float:
    """Compute the root mean square distance of two weights, over all pairs, in the weights' own units.

    Args:
        products: Gram matrix (n, n) of the weights of one role, n >= 2.
    """
    n = len(products)
    squares = 2 * (n * np.trace(products) - products.sum())
    return float(np.sqrt(max(squares, 0.0) / (n * (n - 1))))


def norm_variation(products: np.ndarray) -> float:
    """Compute the standard deviation of the weights' norms over their mean."""
    norms = np.sqrt(np.diag(products))
    return float(norms.std(ddof=1)) / (float(norms.mean()) or float("nan"))


def layer_dispersions(gram: LayerGram) -> Iterator[Row]:
    """Measure the dispersion over the layers of each model, with a 95 % interval from the jackknife over layers.

    Yields:
        A record for each model with three layers or more: `cloud`, `model`, `layers`, `dispersion`, `low`, `high`,
        `spread`, `norm_variation`.
    """
    for model in dict.fromkeys(point.model.name for point in gram.points):
        layers, products = gram.of_model(model)
        if len(layers) >= _MIN_LAYERS:
            value, low, high = jackknife(dispersion, products)
            yield {"cloud": gram.name, "model": model, "layers": len(layers)} | {
                "dispersion": value,
                "low": low,
                "high": high,
                "spread": spread(products),
                "norm_variation": norm_variation(products),
            }


def compare_roles(this: np.ndarray, that: np.ndarray) -> dict[str, float]:
    """Compare the dispersion and the spread of two roles over the same layers.

    Args:
        this: Gram matrix (n, n) of the one role.
        that: Gram matrix (n, n) of the other, of the same layers in the same order.

    Returns:
        `difference`, `low`, `high`: dispersion of `this` minus that of `that`; `ratio`, `ratio_low`, `ratio_high`:
        spread of `this` over that of `that` (its interval is taken in logarithms). The jackknife leaves the same layer
        out of both.
    """

    def log_ratio(this: np.ndarray, that: np.ndarray) -> float:
        a, b = spread(this), spread(that)
        return float(np.log(a / b)) if a > 0 and b > 0 else float("nan")

    difference, low, high = jackknife(lambda a, b: dispersion(a) - dispersion(b), this, that)
    ratio, ratio_low, ratio_high = map(float, np.exp(jackknife(log_ratio, this, that)))
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "ratio": ratio,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
    }


def model_distances(gram: LayerGram) -> Iterator[Row]:
    """Measure how far each two fine-tuned models lie apart: `|W_a - W_b| / |W|`, layer by layer, W of the base.

    Yields:
        A record for each pair that has weights of its own in the same layers: `cloud`, `models`, `by_layer`, `distance`
        (the mean over layers) and its t-interval, `low` and `high`.
    """
    index = {(point.model.name, point.projection.module): i for i, point in enumerate(gram.points)}
    models = [model for model in dict.fromkeys(model for model, _ in index) if model != "base"]
    for this, that in combinations(models, 2):
        distances = []
        for module in (module for model, module in index if model == this and (that, module) in index):
            i, j, base = index[this, module], index[that, module], index["base", module]
            square = max(gram.products[i, i] + gram.products[j, j] - 2 * gram.products[i, j], 0.0)
            distances.append((float(square) / (float(gram.products[base, base]) or float("nan"))) ** 0.5)
        if distances:
            low, high = mean_interval(distances)
            record = {"cloud": gram.name, "models": [this, that], "by_layer": distances}
            yield record | {"distance": float(np.mean(distances)), "low": low, "high": high}


def jackknife(statistic: Callable[..., float], *grams: np.ndarray) -> tuple[float, float, float]:
    """Estimate a statistic of Gram matrices and its 95 % t-interval, leaving out each element in turn (Tukey, 1958).

    Returns:
        The value, and the ends of the interval, NaN of fewer than three elements.
    """
    count, value = len(grams[0]), statistic(*grams)
    if count < _MIN_LAYERS:
        return value, float("nan"), float("nan")
    kept = [np.delete(np.arange(count), i) for i in range(count)]
    without = np.array([statistic(*(gram[np.ix_(rows, rows)] for gram in grams)) for rows in kept])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, count - 1)) * float(error)
    return value, value - half, value + half
