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

from ailora.analysis.analysis_settings import Settings
from ailora.analysis.model_weights import Base, Compared
from ailora.roles import Projection, Role
from ailora.roles.fused_layout import Rows

#: Bytes of a block of all points, in float64.
BLOCK = 128 * 2**20
#: Below so many layers, heads are the points.
_FEW_LAYERS = 12


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        model: whose weight.
        projection: which.
        head: which head of it; None: all of it.
        rows: its rows in the module's weight (out, in).
    """

    model: Compared
    projection: Projection
    head: int | None
    rows: Rows


@dataclass(frozen=True)
class Cloud:
    """Points that can be compared, as they are of one role and one shape.

    Attributes:
        name: the role, with the shape where one role has several.
        points: model by model, in the order of the base's modules and their heads.
    """

    name: str
    points: tuple[Point, ...]


def clouds(base: Base, after: Sequence[Compared], settings: Settings, damaged: set[tuple[str, str]]) -> list[Cloud]:
    """The points of every role: those of the base, then those of each model that has a weight of its own there."""
    kinds: dict[tuple[Role, int, int], list[Projection]] = {}
    for projection in sorted(base.projections, key=lambda p: settings.roles.index(p.role)):
        key = (projection.role, projection.out_features, projection.in_features)
        kinds.setdefault(key, []).append(projection)
    roles = [role for role, _, _ in kinds]
    found = []
    for (role, out, in_), projections in kinds.items():
        heads = _heads(base, projections[0], len(projections), settings)
        points = tuple(
            Point(model, projection, head, rows)
            for model in (base, *after)
            for projection in projections
            if model.holds(projection.module) and (model.name, projection.module) not in damaged
            for head, rows in _parts(projection, heads)
        )
        name = role.value if roles.count(role) == 1 else f"{role.value} {out} x {in_}"
        found.append(Cloud(name, points))
    return found


def _heads(base: Base, projection: Projection, layers: int, settings: Settings) -> int | None:
    """How many heads make a point each; None: whole weights are points."""
    if settings.points == "layers" or (settings.points == "auto" and layers >= _FEW_LAYERS):
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
    """The rows from the `start`-th to the `stop`-th of some ranges."""
    found, passed = [], 0
    for first, last in rows:
        low, high = max(start - passed, 0), min(stop - passed, last - first)
        if low < high:
            found.append((first + low, first + high))
        passed += last - first
    return tuple(found)


def gram(base: Base, cloud: Cloud) -> np.ndarray:
    """The products `<x_i, x_j>` (n, n) of all pairs of points, in float64: exact but for rounding."""
    first = cloud.points[0]
    transposed = base.transposed(first.projection.module)
    width, height = first.projection.in_features, sum(stop - start for start, stop in first.rows)
    steps, across = (width, height) if transposed else (height, width)
    step = max(1, BLOCK // (8 * len(cloud.points) * across))
    products = torch.zeros(len(cloud.points), len(cloud.points), dtype=torch.float64)
    starts = range(0, steps, step)
    for start in tqdm(starts, f"distances of {cloud.name}", unit="block", leave=False, disable=None):
        stop = min(start + step, steps)
        block = torch.empty(len(cloud.points), (stop - start) * across, dtype=torch.float64)
        parts = _columns(cloud, start, stop) if transposed else _rows(cloud, start, stop)
        for row, part in zip(block, parts, strict=True):
            row.copy_(part.reshape(-1))
        products.addmm_(block, block.mT)
    return products.numpy()


def _rows(cloud: Cloud, start: int, stop: int) -> Iterator[Tensor]:
    """The same rows of every point."""
    for point in cloud.points:
        ranges = _cut(point.rows, start, stop)
        yield torch.cat([point.model.stored_rows(point.projection.module, *ends) for ends in ranges])


def _columns(cloud: Cloud, start: int, stop: int) -> Iterator[Tensor]:
    """The same columns of every point, rows of a weight that is stored transposed: read once for all heads."""
    read: tuple[Compared, str] | None = None
    block = torch.empty(0)
    for point in cloud.points:
        source = (point.model, point.projection.module)
        if source != read:
            block, read = point.model.stored_rows(point.projection.module, start, stop), source
        yield torch.cat([block[:, first:last] for first, last in point.rows], dim=1)
