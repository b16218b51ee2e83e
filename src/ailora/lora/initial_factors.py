"""Initial factors of all planned adapters, computed before the model changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.errors import ModelError
from ailora.inits import Factors
from ailora.plan.adapter_plan import Form, Plan, PlannedAdapter
from ailora.roles import Projection
from ailora.weights.base_weight import BaseWeight, select_rows, validate_dora_rows
from ailora.weights.weight_source import WeightSource

#: Peak memory of a decomposition, in fp32 copies of the matrix.
_PEAK_COPIES = 6


@dataclass(frozen=True)
class InitialFactors:
    """The initial factors of a planned adapter, on the device of the adapted layer.

    Attributes:
        planned: Settings of the adapter in the plan.
        factors: Initial factors `A0` (r, in) and `B0` (out, r).
    """

    planned: PlannedAdapter
    factors: Factors


@dataclass(frozen=True)
class _Decomposition:
    """A decomposition to compute, shared by the planned adapters of tied layers."""

    weight: BaseWeight
    sharing: list[PlannedAdapter]

    @property
    def planned(self) -> PlannedAdapter:
        return self.sharing[0]

    @property
    def kind(self) -> tuple[object, ...]:
        """Properties of the decomposition. Decompositions of equal kind can be computed in a batch."""
        p = self.planned
        shape = (p.projection.out_features, p.projection.in_features)
        return (shape, self.weight.dtype, self.weight.device, p.init, p.rank, p.scaling)


def compute_initial_factors(
    plan: Plan, weights: Mapping[str, BaseWeight], source: WeightSource, generator: torch.Generator
) -> list[InitialFactors]:
    """Compute the initial factors of every planned adapter, with a progress bar on a terminal.

    A GPU decomposes matrices of equal shape in batches, which take up to a quarter of the free memory. A CPU decomposes
    matrix by matrix, on all cores. Quantized weights are dequantized batch by batch.

    Args:
        plan: Adapter settings of every projection.
        weights: Base weights by module, which do not change.
        source: Function from a base weight to the matrix to decompose.
        generator: Generator of random factors, drawn in the plan's order.

    Returns:
        The initial factors, in the plan's order.

    Raises:
        ModelError: The shape of a weight differs from the plan, or a weight cannot be decomposed.
    """
    decompositions = _share_decompositions(plan, weights, validate_readable=source is BaseWeight.read)
    read = _validating_dora_rows(source) if plan.options.dora else source
    results: dict[Projection, InitialFactors] = {}
    with tqdm(total=len(decompositions), desc="decomposing", unit="matrix", leave=False, disable=None, delay=1) as bar:
        for batch in _batches(decompositions):
            bar.set_postfix_str(batch[0].planned.projection.name, refresh=False)
            for decomposition, factors in zip(batch, _compute_factors(batch, read, generator), strict=True):
                results |= {p.projection: InitialFactors(p, factors) for p in decomposition.sharing}
            bar.update(len(batch))
    return [results[planned.projection] for planned in plan.adapters]


def _validating_dora_rows(source: WeightSource) -> WeightSource:
    """Wrap a weight source to refuse weights with zero rows, which DoRA cannot adapt."""

    def read(weight: BaseWeight) -> Tensor:
        matrix = source(weight)
        validate_dora_rows(matrix, weight.module)
        return matrix

    return read


def _share_decompositions(
    plan: Plan, weights: Mapping[str, BaseWeight], *, validate_readable: bool
) -> list[_Decomposition]:
    decompositions: dict[tuple[object, ...], _Decomposition] = {}
    for module, group in plan.modules.items():
        weight = weights[module]
        if weight.shape != group[0].projection.shape:
            raise ModelError(
                f"{module}: expected the shape {group[0].projection.shape} of the plan, got {weight.shape}"
            )
        weight.validate_loaded()
        if validate_readable:
            weight.validate_readable()
        # Tied layers share a decomposition: computed twice, their anchors could differ in rounding.
        for planned in group:
            key = (weight.key, planned.projection.rows, planned.init, planned.rank, planned.scaling)
            decompositions.setdefault(key, _Decomposition(weight, [])).sharing.append(planned)
    anchored = [key[:2] for key, each in decompositions.items() if each.planned.init.anchored]
    if plan.form is Form.RESIDUAL and len(set(anchored)) < len(anchored):
        raise ModelError(
            "tied layers have different initial factors, but share a single residual weight: use form='anchored'"
        )
    return list(decompositions.values())


def _batches(decompositions: Sequence[_Decomposition]) -> Iterator[list[_Decomposition]]:
    """Yield batches of decompositions of equal kind, each as large as the memory allows."""
    by_kind: dict[tuple[object, ...], list[_Decomposition]] = {}
    for number, decomposition in enumerate(decompositions):
        # Random inits stay out of batches, to be drawn in the plan's order.
        kind = decomposition.kind if decomposition.planned.init.anchored else (number,)
        by_kind.setdefault(kind, []).append(decomposition)
    for group in by_kind.values():
        remaining = iter(group)
        while batch := list(islice(remaining, _batch_size(group[0]))):
            yield batch


def _batch_size(decomposition: _Decomposition) -> int:
    device = decomposition.weight.device
    # A single matrix keeps all cores busy, and only single matrices use the cache of decompositions.
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    out, in_ = decomposition.planned.projection.shape
    return max(1, free // 4 // (4 * _PEAK_COPIES * out * in_))


def _compute_factors(
    batch: Sequence[_Decomposition], source: WeightSource, generator: torch.Generator
) -> list[Factors]:
    def read(decomposition: _Decomposition) -> Tensor:
        return select_rows(source(decomposition.weight), decomposition.planned.projection)

    planned = batch[0].planned
    weight = read(batch[0]) if len(batch) == 1 else torch.stack([read(each) for each in batch])
    factors = planned.init.factors(weight, planned.rank, scaling=planned.scaling, generator=generator)
    if len(batch) == 1:
        return [factors]
    floored = factors.floored.tolist()
    return [Factors(A, B, torch.tensor(n)) for A, B, n in zip(factors.A, factors.B, floored, strict=True)]
