"""Statistics of updates and spectra, computed in a single pass over the projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.update_norms import compute_update_stats
from ailora.analysis.analysis_settings import AnalysisSettings
from ailora.analysis.direction_profile import SingularDirections, direction_profile
from ailora.analysis.intruders import LeftSingularVectors, nearest_cosines
from ailora.analysis.model_weights import BaseWeights, FinetunedModel
from ailora.analysis.table_ops import Row
from ailora.analysis.weight_update import WeightUpdate
from ailora.errors import InputError
from ailora.formatting import collapse_layer_index
from ailora.roles import Projection
from ailora.spectral import Triplets, truncated_svd
from ailora.weights.base_weight import select_rows

#: Largest number of singular values that the table keeps for a spectrum.
_MAX_SPECTRUM_VALUES = 64


@dataclass
class WeightTables:
    """Rows of the tables of an analysis.

    Attributes:
        deltas: Row for each update of a projection.
        spectra: Row for each projection, of the base and of the models that update it.
        directions: Row for each update, side and bin of singular directions. Empty unless requested.
        damaged: Pairs (model, module) whose weight has NaN or infinite entries.
        notes: Sentences for users about weights left out.
    """

    deltas: list[Row] = field(default_factory=list)
    spectra: list[Row] = field(default_factory=list)
    directions: list[Row] = field(default_factory=list)
    damaged: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def measure_weights(base: BaseWeights, models: Sequence[FinetunedModel], settings: AnalysisSettings) -> WeightTables:
    """Measure every projection of the base and every update, reading each weight once.

    A weight with NaN or infinite entries is left out, with a note. If the weight belongs to the base, its updates are
    left out too.

    Args:
        base: Base model.
        models: Fine-tuned models.
        settings: Settings, of which `rank`, `top`, `epsilon` and `directions` are used.

    Returns:
        Rows of the tables.

    Raises:
        ModelError: An adapter was made for a different weight.
    """
    tables = WeightTables()
    for module in tqdm(base.modules, "matrices", unit="matrix", leave=False, disable=None):
        try:
            stored = base.read(module)
        except InputError as error:
            tables.damaged |= {(model.name, module) for model in (base, *models)}
            tables.notes.append(f"left out: {error}")
            continue
        updated = [model for model in models if model.has_weight(module)]
        for model in updated:
            model.validate_base_weight(module, stored)
        weight = stored.T if base.is_transposed(module) else stored
        for projection in base.module_projections(module):
            _measure_projection(tables, projection, weight, updated, settings=settings)
    return tables


def _measure_projection(
    tables: WeightTables,
    projection: Projection,
    weight: Tensor,
    models: Sequence[FinetunedModel],
    *,
    settings: AnalysisSettings,
) -> None:
    """Add the table rows of a projection: for the base model, and for each fine-tuned model.

    Args:
        tables: Tables to extend.
        projection: Projection to measure.
        weight: Whole base weight (out, in) of the projection's module.
        models: Fine-tuned models that update the module.
        settings: Settings of the analysis.
    """
    projection_weight = select_rows(weight, projection)
    columns = projection_columns(projection)
    rank = min(settings.rank, projection.max_rank)
    bands = {band: truncated_svd(projection_weight, rank, band) for band in ("principal", "minor")}
    # Decompose the base weight only once for all models.
    base_vectors = LeftSingularVectors(projection_weight, settings.top)
    directions = SingularDirections.from_weight(projection_weight) if settings.directions else None
    values = torch.linalg.svdvals(projection_weight.double()) if directions is None else directions.values
    weight_norm = float(values.norm())
    tables.spectra.append(
        {"model": "base", **columns, **measure_spectrum(values, rank), **_NO_ANCHOR, "intruders": float("nan")}
    )
    for model in models:
        try:
            update = model.update(projection, weight)
        except InputError as error:
            # A fused weight has several projections, but needs only a single note.
            if (model.name, projection.module) not in tables.damaged:
                tables.notes.append(f"{model.name}: left out: {error}")
            tables.damaged.add((model.name, projection.module))
            continue
        tables.deltas.append({"model": model.name, **columns, **measure_update(update, weight_norm, bands, rank=rank)})
        if directions is not None:
            gradient = model.initial_gradient(projection)
            for name, change in (("dW", update), ("gradient", gradient)):
                profile = () if change is None else direction_profile(change, directions, rank)
                tables.directions += [{"model": model.name, **columns, "update": name, **row} for row in profile]
        finetuned_weight = projection_weight.double() + update.dense()
        cosines = nearest_cosines(base_vectors, finetuned_weight, settings.epsilon)
        tables.spectra.append(
            {
                "model": model.name,
                **columns,
                **measure_spectrum(torch.linalg.svdvals(finetuned_weight), rank),
                **_measure_anchor(model, projection),
                "intruders": float((cosines < settings.epsilon).sum()),
            }
        )


def projection_columns(projection: Projection) -> Row:
    """Return the columns that identify a projection."""
    return {
        "module": projection.module,
        "kind": collapse_layer_index(projection.module),
        "layer": layer_index(projection.module),
        "role": projection.role.value,
        "out_features": projection.out_features,
        "in_features": projection.in_features,
    }


def layer_index(module: str) -> int:
    """Return the layer index of a module: the first number in its name, or 0 without a number."""
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def measure_update(
    update: WeightUpdate, weight_norm: float, bands: dict[str, Triplets], *, rank: int
) -> dict[str, float]:
    """Measure the size, the rank and the directions of an update.

    Args:
        update: `dW` (out, in).
        weight_norm: `|W|`, the Frobenius norm.
        bands: Principal and minor triplets of `W`.
        rank: Number r of triplets in each band.

    Returns:
        Statistic -> value. For a zero update, ranks are 0 and shares are NaN.

        - `norm`: `|dW|`, the Frobenius norm. `relative`: `|dW| / |W|`.
        - `effective_rank`, `stable_rank`: See the functions with these names.
        - `left_principal`, `right_principal`: shares of the energy in the r principal singular vectors of `W`,
          `|U' dW|^2 / |dW|^2` and `|dW V|^2 / |dW|^2`.
        - `left_minor`, `right_minor`: shares of the energy in the r minor singular vectors.
        - `left_chance`, `right_chance`: shares for a random update, r / out and r / in.
    """
    values = update.singular_values()
    norm = float(values.norm())
    # For a zero update, NaN instead of 0 makes the shares NaN instead of dividing by zero.
    energy = norm**2 or float("nan")
    out, in_ = bands["principal"].U.shape[0], bands["principal"].Vh.shape[1]
    shares = {}
    for band, triplets in bands.items():
        shares[f"left_{band}"] = float(update.left_energies(triplets.U).sum()) / energy
        shares[f"right_{band}"] = float(update.right_energies(triplets.Vh).sum()) / energy
    return {
        "norm": norm,
        "relative": norm / weight_norm if weight_norm else float("nan"),
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        **shares,
        "left_chance": rank / out,
        "right_chance": rank / in_,
    }


def measure_spectrum(values: Tensor, rank: int) -> Row:
    """Measure the spectrum of a weight.

    Args:
        values: Singular values (k,), descending.
        rank: Number r of values in the principal and in the minor band.

    Returns:
        Statistic -> value:

        - `norm`: Frobenius norm. `largest`, `smallest`: singular values at both ends.
        - `condition`: `largest / smallest`, infinite for a singular matrix.
        - `effective_rank`, `stable_rank`: See the functions with these names.
        - `principal`, `middle`, `minor`: shares of the energy `sum s^2` in the first r values, in the values between,
          and in the last r.
        - `indices`, `values`: up to 64 singular values, with their indices from 0.
    """
    squares = values.square()
    energy = float(squares.sum()) or float("nan")
    principal, minor = float(squares[:rank].sum()) / energy, float(squares[-rank:].sum()) / energy
    indices = _log_spaced_indices(len(values))
    smallest = float(values[-1])
    return {
        "norm": float(values.norm()),
        "largest": float(values[0]),
        "smallest": smallest,
        "condition": float(values[0]) / smallest if smallest else float("inf"),
        "stable_rank": stable_rank(values),
        "effective_rank": effective_rank(values),
        "principal": principal,
        "middle": float(squares[rank:-rank].sum()) / energy,
        "minor": minor,
        "indices": indices,
        "values": values[indices].tolist(),
    }


def effective_rank(values: Tensor) -> float:
    """Return `exp(-sum p log p)` with `p = s / sum s` (Roy and Vetterli, EUSIPCO 2007), or 0 if all values are 0."""
    total = values.sum()
    shares = values[values > 0] / total if total > 0 else values[:0]
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def stable_rank(values: Tensor) -> float:
    """Return `sum s^2 / s_1^2` of descending singular values (k,), or 0 if all values are 0."""
    return float(values.square().sum() / values[0].square()) if values[0] > 0 else 0.0


#: Columns about the anchor, for the base and for models without an anchor.
_NO_ANCHOR: dict[str, float] = dict.fromkeys(("anchor", "moved_A", "moved_B"), float("nan"))


def _measure_anchor(model: FinetunedModel, projection: Projection) -> dict[str, float]:
    """Measure the anchor's norm `|s B0 A0|`, and the factors' relative changes `|dA| / |A0|` and `|dB| / |B0|`."""
    factors = model.anchored_factors(projection)
    if factors is None:
        return _NO_ANCHOR
    stats = compute_update_stats(factors)
    columns = {"anchor": stats.anchor_norm, "moved_A": stats.moved_A, "moved_B": stats.moved_B}
    return {column: float("nan") if value is None else value for column, value in columns.items()}


def _log_spaced_indices(count: int) -> list[int]:
    """Choose at most 64 indices below `count`, closer together toward both ends."""
    if count <= _MAX_SPECTRUM_VALUES:
        return list(range(count))
    # Space indices evenly in the logarithm of the distance from each end, so that both bands stay visible.
    ends = np.logspace(0, np.log10(count / 2), _MAX_SPECTRUM_VALUES // 2).round().astype(int) - 1
    return sorted({*ends.tolist(), *(count - 1 - ends).tolist()})
