"""How far the weights of one role lie apart: over the layers of a model, and between models. From Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from ailora.analysis.gram_matrix import Cloud, Point
from ailora.analysis.weight_stats import layer_of


def dispersions(found: Sequence[tuple[Cloud, np.ndarray]]) -> dict[str, Any]:
    """All numbers of this file, for clouds with their Gram matrices.

    Returns:
        `layers`: as `over_layers`; `differences`: for each two clouds and each model that has the same layers in both,
        `model`, `roles`, and `difference`, of the dispersions, and `ratio`, of the spreads, with 95 % intervals from
        the jackknife over layers, which leaves the same layer out of both; `between`: as `between_models`.
    """
    weights = {cloud.name: layer_gram(cloud, products) for cloud, products in found}
    between = [between_models(points, products, name) for name, (points, products) in weights.items()]
    models = dict.fromkeys(point.model.name for points, _ in weights.values() for point in points)
    differences = []
    for (this, own), (that, other) in combinations(weights.items(), 2):
        for model in models:
            (layers, a), (others, b) = _of_model(*own, model), _of_model(*other, model)
            if layers == others and len(layers) >= 3:
                differences.append({"model": model, "roles": [this, that], **difference(a, b)})
    return {
        "layers": [
            record for name, (points, products) in weights.items() for record in over_layers(points, products, name)
        ],
        "differences": differences,
        "between": [record for records in between for record in records],
    }


def _of_model(points: Sequence[Point], products: np.ndarray, model: str) -> tuple[list[int], np.ndarray]:
    """The layers of a model's weights, and their products."""
    rows = [i for i, point in enumerate(points) if point.model.name == model]
    return [layer_of(points[i].projection.module) for i in rows], products[np.ix_(rows, rows)]


def layer_gram(cloud: Cloud, products: np.ndarray) -> tuple[list[Point], np.ndarray]:
    """The products of whole weights, which are the sums over their heads, and one point for each weight."""
    keys = [(point.model.name, point.projection.module) for point in cloud.points]
    order = list(dict.fromkeys(keys))
    firsts = [cloud.points[keys.index(key)] for key in order]
    heads = max((point.head or 0 for point in cloud.points), default=0) + 1
    if heads == 1:
        return firsts, products
    count = len(order)
    # Heads of a weight follow each other: [weight, head, weight', head'], of which equal heads count.
    return firsts, np.einsum("ihjh->ij", products.reshape(count, heads, count, heads))


def dispersion(products: np.ndarray) -> float:
    """How dispersed weights are: `1 - ` the mean cosine of all pairs.

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
    """Root mean square of the distance of two weights, over all pairs: in the weights' own units, so that large weights
    are far apart.

    Args:
        products: Gram matrix (n, n) of the weights of one role, n >= 2.
    """
    n = len(products)
    squares = 2 * (n * np.trace(products) - products.sum())
    return float(np.sqrt(max(squares, 0.0) / (n * (n - 1))))


def norm_variation(products: np.ndarray) -> float:
    """Standard deviation of the weights' norms over their mean: how unequal they are in size."""
    norms = np.sqrt(np.diag(products))
    return float(norms.std(ddof=1)) / (float(norms.mean()) or float("nan"))


def over_layers(points: Sequence[Point], products: np.ndarray, name: str) -> list[dict[str, Any]]:
    """The dispersion over the layers of each model, with a 95 % interval from the jackknife over layers.

    Returns:
        A record for each model with three layers or more: `cloud`, `model`, `layers`, `dispersion`, `low`, `high`,
        `spread`, `norm_variation`.
    """
    found = []
    for model in dict.fromkeys(point.model.name for point in points):
        layers, own = _of_model(points, products, model)
        if len(layers) < 3:
            continue
        low, high = jackknife(lambda kept, own=own: dispersion(own[np.ix_(kept, kept)]), len(layers))
        numbers = {"dispersion": dispersion(own), "low": low, "high": high}
        sizes = {"spread": spread(own), "norm_variation": norm_variation(own)}
        found.append({"cloud": name, "model": model, "layers": len(layers), **numbers, **sizes})
    return found


def difference(this: np.ndarray, that: np.ndarray) -> dict[str, float]:
    """How the dispersion and the spread of one role compare with those of another, over the same layers.

    Args:
        this: Gram matrix (n, n) of the one.
        that: Gram matrix (n, n) of the other, of the same layers in the same order.

    Returns:
        `difference`, `low`, `high`: dispersion of this minus that of that; `ratio`, `ratio_low`, `ratio_high`: spread
        of this over that of that (its interval is taken in logarithms).
    """

    def both(statistic: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], tuple[float, float]]:
        return lambda kept: (statistic(this[np.ix_(kept, kept)]), statistic(that[np.ix_(kept, kept)]))

    def minus(kept: np.ndarray) -> float:
        a, b = both(dispersion)(kept)
        return a - b

    def over(kept: np.ndarray) -> float:
        a, b = both(spread)(kept)
        return float(np.log(a / b)) if a > 0 and b > 0 else float("nan")

    everything = np.arange(len(this))
    low, high = jackknife(minus, len(this))
    ratio_low, ratio_high = np.exp(jackknife(over, len(this)))
    return {
        "difference": minus(everything),
        "low": low,
        "high": high,
        "ratio": float(np.exp(over(everything))),
        "ratio_low": float(ratio_low),
        "ratio_high": float(ratio_high),
    }


def between_models(points: Sequence[Point], products: np.ndarray, name: str) -> list[dict[str, Any]]:
    """How far each two fine-tuned models lie apart: `|W_a - W_b| / |W|`, layer by layer, W being the base's weight.

    Returns:
        A record for each pair that has weights of its own in the same layers: `cloud`, `models`, `by_layer`, `distance`
        (the mean over layers) and its t-interval, `low` and `high`.
    """
    where = {(point.model.name, point.projection.module): i for i, point in enumerate(points)}
    models = [model for model in dict.fromkeys(model for model, _ in where) if model != "base"]
    found = []
    for this, that in combinations(models, 2):
        distances = []
        for module in dict.fromkeys(module for model, module in where if model == this):
            if (that, module) not in where:
                continue
            i, j, base = where[this, module], where[that, module], where["base", module]
            square = max(products[i, i] + products[j, j] - 2 * products[i, j], 0.0)
            distances.append((float(square) / (float(products[base, base]) or float("nan"))) ** 0.5)
        if distances:
            low, high = mean_interval(distances)
            numbers = {"distance": float(np.mean(distances)), "low": low, "high": high}
            found.append({"cloud": name, "models": [this, that], "by_layer": distances, **numbers})
    return found


def jackknife(statistic: Callable[[np.ndarray], float], count: int) -> tuple[float, float]:
    """A 95 % t-interval of a statistic of `count` elements, from leaving each out in turn (Tukey, 1958); NaN of fewer
    than three."""
    if count < 3:
        return float("nan"), float("nan")
    everything = np.arange(count)
    without = np.array([statistic(np.delete(everything, i)) for i in everything])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, count - 1)) * float(error)
    value = statistic(everything)
    return value - half, value + half


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % t-interval of the mean of some values; NaN of fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half
