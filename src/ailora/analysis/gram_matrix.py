"""Point sets of an embedding, and their Gram matrices, computed without holding all points in memory.

A point is a weight, or the rows of a weight that belong to one head, flattened to a vector. t-SNE, PCA and dispersion
need only the products `<x_i, x_j>` of all pairs. The products are sums over entries, and are accumulated block by
block. A block has the same rows of all weights, as many as fit into a fixed number of bytes. So the memory for weights
does not grow with the number of layers, and each point is read only once. In contrast, computing pair by pair would
read each point n times, and a random projection would be inexact.
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
from ailora.errors import InputError
from ailora.roles import Projection, Role
from ailora.roles.fused_layout import Rows

#: Size in bytes of a block of float64 rows from all points.
BLOCK_BYTES = 128 * 2**20
#: Fewest layers for which `points: auto` makes each weight a point. With fewer layers, each head is a point, which
#: gives more points.
_MIN_LAYER_POINTS = 12


@dataclass(frozen=True)
class Point:
    """Weight, or the part of a weight that belongs to one head, as a vector.

    Attributes:
        model: Model with the weight.
        projection: Projection in the base model.
        head: Index of the head, or None for the whole weight.
        rows: Ranges of rows in the module's weight (out, in).
    """

    model: ModelWeights
    projection: Projection
    head: int | None
    rows: Rows


@dataclass(frozen=True)
class PointSet:
    """Points with a common role and shape.

    Attributes:
        name: Name of the role, followed by the shape if the role has several shapes.
        points: Points, ordered by model, then by module of the base, then by head.
    """

    name: str
    points: tuple[Point, ...]


def build_point_sets(
    base: BaseWeights, models: Sequence[ModelWeights], settings: AnalysisSettings, damaged: set[tuple[str, str]]
) -> list[PointSet]:
    """Build the point sets of all roles, from the weights of the base and of the fine-tuned models.

    Args:
        base: Base model.
        models: Fine-tuned models.
        settings: Settings with the roles and the kind of points.
        damaged: Pairs (model name, module) of weights to leave out, because they have NaN or infinite entries.

    Returns:
        Point set for each role and shape, in the order of the roles in the settings.
    """
    by_shape: dict[tuple[Role, int, int], list[Projection]] = {}
    for projection in sorted(base.projections, key=lambda p: settings.roles.index(p.role)):
        key = (projection.role, projection.out_features, projection.in_features)
        by_shape.setdefault(key, []).append(projection)
    roles = [role for role, _, _ in by_shape]
    point_sets = []
    for (role, out, in_), projections in by_shape.items():
        num_heads = _num_heads(base, projections[0], len(projections), settings)
        points = tuple(
            Point(model, projection, head, rows)
            for model in (base, *models)
            for projection in projections
            if model.has_weight(projection.module) and (model.name, projection.module) not in damaged
            for head, rows in _split_heads(projection, num_heads)
        )
        name = role.value if roles.count(role) == 1 else f"{role.value} {out} x {in_}"
        point_sets.append(PointSet(name, points))
    return point_sets


def _num_heads(base: BaseWeights, projection: Projection, num_layers: int, settings: AnalysisSettings) -> int | None:
    """Return the number of heads in a projection, or None if the whole weight is a point.

    Raises:
        InputError: Heads are requested, and the projection is not divided into heads.
    """
    if settings.points == "layers" or (settings.points == "auto" and num_layers >= _MIN_LAYER_POINTS):
        return None
    config = base.model.config
    num_heads = getattr(config, "num_attention_heads", None)
    # With grouped-query attention, key and value have fewer heads than the query.
    if projection.role in (Role.KEY, Role.VALUE):
        num_heads = getattr(config, "num_key_value_heads", None) or num_heads
    elif projection.role is not Role.QUERY:
        num_heads = None
    if isinstance(num_heads, int) and num_heads > 0 and projection.out_features % num_heads == 0:
        return num_heads
    if settings.points == "heads":
        raise InputError(
            f"points: 'heads' needs projections whose rows are divided into heads, and {projection.name} (role "
            f"{projection.role}) has none; choose 'layers' or 'auto', or other roles"
        )
    return None


def _split_heads(projection: Projection, num_heads: int | None) -> Iterator[tuple[int | None, Rows]]:
    """Yield the index and the rows of each head, or None and all rows if the projection is not split."""
    if num_heads is None:
        yield None, projection.rows
        return
    head_size = projection.out_features // num_heads
    for head in range(num_heads):
        yield head, _slice_rows(projection.rows, head * head_size, (head + 1) * head_size)


def _slice_rows(rows: Rows, start: int, stop: int) -> Rows:
    """Return rows `start` to `stop` (exclusive) of the matrix that concatenates the ranges, as ranges of the weight."""
    ranges, offset = [], 0
    for range_start, range_stop in rows:
        size = range_stop - range_start
        low, high = max(start - offset, 0), min(stop - offset, size)
        if low < high:
            ranges.append((range_start + low, range_start + high))
        offset += size
    return tuple(ranges)


def compute_gram(base: BaseWeights, point_set: PointSet) -> np.ndarray:
    """Compute the Gram matrix of a point set, block by block.

    Args:
        base: Base model. Its checkpoint may store weights transposed.
        point_set: Point set with at least one point.

    Returns:
        Products `<x_i, x_j>` (n, n) of all pairs of points, in float64, exact up to rounding.
    """
    points = point_set.points
    first = points[0]
    # A block is a range of stored rows, because these are contiguous in the file. If the checkpoint stores a weight as
    # (in, out), a stored row is a column of the weight (out, in).
    transposed = base.is_transposed(first.projection.module)
    width, height = first.projection.in_features, sum(stop - start for start, stop in first.rows)
    num_stored_rows, row_length = (width, height) if transposed else (height, width)
    # Entries of a block have 8 bytes in float64.
    rows_per_block = max(1, BLOCK_BYTES // (8 * len(points) * row_length))
    products = torch.zeros(len(points), len(points), dtype=torch.float64)
    starts = range(0, num_stored_rows, rows_per_block)
    for start in tqdm(starts, f"distances of {point_set.name}", unit="block", leave=False, disable=None):
        stop = min(start + rows_per_block, num_stored_rows)
        # Each row of the block is the part of a point within the range of stored rows.
        block = torch.empty(len(points), (stop - start) * row_length, dtype=torch.float64)
        parts = _read_columns(points, start, stop) if transposed else _read_rows(points, start, stop)
        for block_row, part in zip(block, parts, strict=True):
            block_row.copy_(part.reshape(-1))
        products.addmm_(block, block.mT)
    return products.numpy()


def _read_rows(points: Sequence[Point], start: int, stop: int) -> Iterator[Tensor]:
    """Read the same rows of every point."""
    for point in points:
        ranges = _slice_rows(point.rows, start, stop)
        yield torch.cat([point.model.read_stored_rows(point.projection.module, *ends) for ends in ranges])


def _read_columns(points: Sequence[Point], start: int, stop: int) -> Iterator[Tensor]:
    """Read the same columns (in) of every point, from weights stored transposed."""
    block_source: tuple[ModelWeights, str] | None = None
    block = torch.empty(0)
    for point in points:
        source = (point.model, point.projection.module)
        # A stored row has entries of all heads, and the points of these heads are adjacent: read their block once.
        if source != block_source:
            block, block_source = point.model.read_stored_rows(point.projection.module, start, stop), source
        yield torch.cat([block[:, range_start:range_stop] for range_start, range_stop in point.rows], dim=1)
