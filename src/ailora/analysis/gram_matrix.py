"""The points of an embedding, and their Gram matrix, without ever holding the points.

A point is a weight, or the rows of one head in it, as one long vector. t-SNE, PCA and dispersion need no more than the
products `<x_i, x_j>` of all pairs. These are sums over entries, so that they are gathered over blocks of entries: the
same rows of all weights, as many as fit into a fixed number of bytes, then the next ones. Every byte is read once and
memory does not grow with the number of layers. (Pairs of whole weights would be read again for each pair, n times in
all; a random projection would read once too, and be inexact.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.analysis.analysis_settings import AnalysisSettings
from ailora.analysis.model_weights import BaseWeights, ModelWeights
from ailora.roles import Projection, Role
from ailora.roles.fused_layout import Rows

#: Bytes of a block of all points, in float64.
BLOCK_BYTES = 128 * 2**20
#: From so many layers on, whole weights are the points.
_MIN_LAYERS = 12


@dataclass(frozen=True)
class Point:
    """A weight, or one head of it, as a vector.

    Attributes:
        model: the model that the weight belongs to.
        projection: of the base.
        head: index of the head; None: the whole weight.
        rows: its rows in the module's weight (out, in).
    """

    model: ModelWeights
    projection: Projection
    head: int | None
    rows: Rows


@dataclass(frozen=True)
class PointSet:
    """Points of one role and one shape, which can be compared.

    Attributes:
        name: the role, with the shape where one role has several.
        points: model by model, in the order of the base's modules and their heads.
    """

    name: str
    points: tuple[Point, ...]


def build_point_sets(
    base: BaseWeights, models: Sequence[ModelWeights], settings: AnalysisSettings, damaged: set[tuple[str, str]]
) -> list[PointSet]:
    """Collect the points of every role: those of the base, then those of each model that has a weight of its own there.

    Args:
        base: the base.
        models: the fine-tuned models.
        settings: whether layers or heads are points.
        damaged: (model, module) to leave out.
    """
    by_shape: dict[tuple[Role, int, int], list[Projection]] = {}
    for projection in sorted(base.projections, key=lambda p: settings.roles.index(p.role)):
        key = (projection.role, projection.out_features, projection.in_features)
        by_shape.setdefault(key, []).append(projection)
    roles = [role for role, _, _ in by_shape]
    point_sets = []
    for (role, out, in_), projections in by_shape.items():
        heads = _num_heads(base, projections[0], len(projections), settings)
        points = tuple(
            Point(model, projection, head, rows)
            for model in (base, *models)
            for projection in projections
            if model.has_weight(projection.module) and (model.name, projection.module) not in damaged
            for head, rows in _parts(projection, heads)
        )
        name = role.value if roles.count(role) == 1 else f"{role.value} {out} x {in_}"
        point_sets.append(PointSet(name, points))
    return point_sets


def _num_heads(base: BaseWeights, projection: Projection, layers: int, settings: AnalysisSettings) -> int | None:
    """Count the heads that make a point each. Returns None if whole weights are points."""
    if settings.points == "layers" or (settings.points == "auto" and layers >= _MIN_LAYERS):
        return None
    config = base.model.config
    heads = getattr(config, "num_attention_heads", None)
    if projection.role in (Role.KEY, Role.VALUE):
        heads = getattr(config, "num_key_value_heads", None) or heads
    elif projection.role is not Role.QUERY:
        return None
    return heads if isinstance(heads, int) and heads > 0 and projection.out_features % heads == 0 else None


def _parts(projection: Projection, heads: int | None) -> Iterator[tuple[int | None, Rows]]:
    if heads is None:
        yield None, projection.rows
        return
    size = projection.out_features // heads
    for head in range(heads):
        yield head, _cut(projection.rows, head * size, (head + 1) * size)


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    """Cut ranges of rows to those from the `start`-th to the `stop`-th row."""
    ranges, passed = [], 0
    for first, last in rows:
        low, high = max(start - passed, 0), min(stop - passed, last - first)
        if low < high:
            ranges.append((first + low, first + high))
        passed += last - first
    return tuple(ranges)


def compute_gram(base: BaseWeights, point_set: PointSet) -> np.ndarray:
    """Compute the products `<x_i, x_j>` (n, n) of all pairs of points, in float64: exact but for rounding."""
    points = point_set.points
    first = points[0]
    transposed = base.is_transposed(first.projection.module)
    width, height = first.projection.in_features, sum(stop - start for start, stop in first.rows)
    steps, across = (width, height) if transposed else (height, width)
    step = max(1, BLOCK_BYTES // (8 * len(points) * across))
    products = torch.zeros(len(points), len(points), dtype=torch.float64)
    starts = range(0, steps, step)
    for start in tqdm(starts, f"distances of {point_set.name}", unit="block", leave=False, disable=None):
        stop = min(start + step, steps)
        block = torch.empty(len(points), (stop - start) * across, dtype=torch.float64)
        parts = _columns(points, start, stop) if transposed else _rows(points, start, stop)
        for row, part in zip(block, parts, strict=True):
            row.copy_(part.reshape(-1))
        products.addmm_(block, block.mT)
    return products.numpy()


def _rows(points: Sequence[Point], start: int, stop: int) -> Iterator[Tensor]:
    """Read the same rows of every point."""
    for point in points:
        ranges = _cut(point.rows, start, stop)
        yield torch.cat([point.model.read_stored_rows(point.projection.module, *ends) for ends in ranges])


def _columns(points: Sequence[Point], start: int, stop: int) -> Iterator[Tensor]:
    """Read the same columns of every point, rows of a weight that is stored transposed, once for all heads."""
    read: tuple[ModelWeights, str] | None = None
    block = torch.empty(0)
    for point in points:
        source = (point.model, point.projection.module)
        if source != read:
            block, read = point.model.read_stored_rows(point.projection.module, start, stop), source
        yield torch.cat([block[:, first:last] for first, last in point.rows], dim=1)
