"""The tables of deltas and spectra: one pass over the projections, one matrix in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.update_norms import measured
from ailora.analysis.analysis_settings import Settings
from ailora.analysis.intruders import Directions, nearest_cosines
from ailora.analysis.model_weights import After, Base
from ailora.analysis.weight_update import Update
from ailora.errors import InputError
from ailora.roles import Projection, collapse_layer_index
from ailora.spectral import Triplets, truncated_svd
from ailora.weights.base_weight import select_rows

#: Singular values of a spectrum that are kept.
_KEPT = 64


@dataclass
class Matrices:
    """What one pass over the projections found.

    Attributes:
        deltas: a row for each update.
        spectra: a row for each weight.
        damaged: (model, module) whose weight cannot be used.
        notes: what was left out, and why.
    """

    deltas: list[dict[str, Any]] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    damaged: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def measure_matrices(base: Base, after: Sequence[After], settings: Settings) -> Matrices:
    """Read every projection of the base once, and every update of it.

    A matrix with NaN or infinite entries is left out, with a note; that of the base with all updates of it.

    Raises:
        ModelError: an adapter was made from another weight.
    """
    found = Matrices()
    for module in tqdm(base.modules, "matrices", unit="matrix", leave=False, disable=None):
        try:
            stored = base.read(module)
        except InputError as error:
            found.damaged |= {(model.name, module) for model in (base, *after)}
            found.notes.append(f"left out: {error}")
            continue
        holding = [model for model in after if model.holds(module)]
        for model in holding:
            model.validate_made_for(module, stored)
        weight = stored.T if base.transposed(module) else stored
        for projection in base.roles(module):
            _measure(found, projection, weight, holding, settings=settings)
    return found


def _measure(
    found: Matrices, projection: Projection, weight: Tensor, after: Sequence[After], *, settings: Settings
) -> None:
    rows = select_rows(weight, projection)
    known = identity_of(projection)
    rank = min(settings.rank, projection.max_rank)
    bands = {band: truncated_svd(rows, rank, band) for band in ("principal", "minor")}
    values = torch.linalg.svdvals(rows.double())
    norm = float(values.norm())
    directions = Directions(rows, settings.top)
    found.spectra.append({"model": "base", **known, **spectrum_numbers(values, rank), **_NOT_MOVED})
    for model in after:
        try:
            update = model.update(projection, weight)
        except InputError as error:
            if (model.name, projection.module) not in found.damaged:
                found.notes.append(f"{model.name}: left out: {error}")
            found.damaged.add((model.name, projection.module))
            continue
        found.deltas.append({"model": model.name, **known, **delta_numbers(update, norm, bands, rank=rank)})
        changed = rows.double() + update.dense()
        cosines = nearest_cosines(directions, changed, settings.epsilon)
        found.spectra.append(
            {
                "model": model.name,
                **known,
                **spectrum_numbers(torch.linalg.svdvals(changed), rank),
                **_moved(model, projection),
                "intruders": float((cosines < settings.epsilon).sum()),
            }
        )


def identity_of(projection: Projection) -> dict[str, Any]:
    """The columns that say which projection a row is of."""
    return {
        "module": projection.module,
        "kind": collapse_layer_index(projection.module),
        "layer": layer_of(projection.module),
        "role": projection.role.value,
        "out_features": projection.out_features,
        "in_features": projection.in_features,
    }


def layer_of(module: str) -> int:
    """The number of a module's layer: the first number in its name, 0 where there is none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def delta_numbers(update: Update, size: float, bands: dict[str, Triplets], *, rank: int) -> dict[str, float]:
    """What one update is.

    Args:
        update: `dW` (out, in).
        size: `|W|`.
        bands: the principal and the minor triplets of `W`.
        rank: how many each band has.

    Returns:
        `norm`, `|dW|`; `relative`, `|dW| / |W|`; `effective_rank` and `stable_rank` as `spectrum_numbers`; and shares
        of the energy `|dW|^2`: `left_principal`, `|U' dW|^2 / |dW|^2`, and `right_principal`, `|dW V|^2 / |dW|^2`,
        over the r principal left and right singular vectors of `W`, likewise `_minor`. A random update has r / out
        on the left, `left_chance`, and r / in on the right, `right_chance`. Of no update, ranks are 0 and shares NaN.
    """
    values = update.values()
    norm = float(values.norm())
    energy = norm**2 or float("nan")
    out, in_ = bands["principal"].U.shape[0], bands["principal"].Vh.shape[1]
    shares = {}
    for band, triplets in bands.items():
        shares[f"left_{band}"] = update.onto_left(triplets.U) ** 2 / energy
        shares[f"right_{band}"] = update.onto_right(triplets.Vh) ** 2 / energy
    return {
        "norm": norm,
        "relative": norm / size if size else float("nan"),
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        **shares,
        "left_chance": rank / out,
        "right_chance": rank / in_,
    }


def spectrum_numbers(values: Tensor, rank: int) -> dict[str, Any]:
    """What one spectrum is.

    Args:
        values: singular values (small,), descending.
        rank: of the principal and the minor band.

    Returns:
        `norm` (Frobenius); `largest`, `smallest`; `condition`, their ratio (infinite for a singular matrix);
        `stable_rank`, `sum s^2 / s_1^2`; `effective_rank`, `exp(H(s / sum s))` (Roy and Vetterli, 2007);
        `principal`, `middle` and `minor`, shares of the energy `sum s^2` in the first r values, the last r, and
        between; `indices` and `values`: up to 64 singular values, evenly spaced in the logarithm of their index, so
        that both ends are kept.
    """
    squares = values.square()
    energy = float(squares.sum()) or float("nan")
    principal, minor = float(squares[:rank].sum()) / energy, float(squares[-rank:].sum()) / energy
    indices = _thinned(len(values))
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
    """`exp(-sum p log p)` with `p = s / sum s` (Roy and Vetterli, EUSIPCO 2007); 0 of no update."""
    total = values.sum()
    shares = values[values > 0] / total if total > 0 else values[:0]
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def stable_rank(values: Tensor) -> float:
    """`sum s^2 / s_1^2`; 0 of no update."""
    return float(values.square().sum() / values[0].square()) if values[0] > 0 else 0.0


_NOT_MOVED: dict[str, float] = dict.fromkeys(("anchor", "moved_A", "moved_B", "intruders"), float("nan"))


def _moved(model: After, projection: Projection) -> dict[str, float]:
    """How far an anchored adapter is from its anchor: `|s B0 A0|`, `|dA| / |A0|`, `|dB| / |B0|`."""
    role = model.moved(projection)
    if role is None:
        return _NOT_MOVED
    numbers = measured(role)
    found = {"anchor": numbers.start, "moved_A": numbers.moved_A, "moved_B": numbers.moved_B}
    return {name: float("nan") if value is None else value for name, value in found.items()}


def _thinned(count: int) -> list[int]:
    """Indices from both ends of a list, denser toward the ends."""
    if count <= _KEPT:
        return list(range(count))
    half = torch.logspace(0, torch.log10(torch.tensor(count / 2)).item(), _KEPT // 2)
    ends: Iterator[int] = (int(i) - 1 for i in half.round())
    first = {min(i, count - 1) for i in ends}
    return sorted(first | {count - 1 - i for i in first})
