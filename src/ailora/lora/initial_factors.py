"""Initial factors of all planned adapters, computed before the adapters are inserted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    """The initial factors of a planned adapter.

    Attributes:
        planned: Settings of the adapter in the plan.
        factors: Initial factors `A0` (r, in) and `B0` (out, r), on the device of the base weight. Ranks that receive
            the factors from rank 0 have them on the CPU.
    """

    planned: PlannedAdapter
    factors: Factors

    def to(self, device: torch.device) -> InitialFactors:
        """Return the factors on a device."""
        return replace(self, factors=replace(self.factors, A=self.factors.A.to(device), B=self.factors.B.to(device)))


@dataclass(frozen=True)
class _Decomposition:
    """A decomposition to compute, shared by the planned adapters of tied layers."""

    weight: BaseWeight
    adapters: list[PlannedAdapter]

    @property
    def planned(self) -> PlannedAdapter:
        """First of the adapters, which agree in rows, init, rank and scaling."""
        return self.adapters[0]

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Key of a batch: decompositions with the same key can be computed together."""
        p = self.planned
        shape = (p.projection.out_features, p.projection.in_features)
        return (shape, self.weight.dtype, self.weight.device, p.init, p.rank, p.scaling)


def compute_initial_factors(
    plan: Plan, weights: Mapping[str, BaseWeight], source: WeightSource, generator: torch.Generator
) -> list[InitialFactors]:
    """Compute the initial factors of every planned adapter, with a progress bar on a terminal.

    On a GPU, matrices of equal shape are decomposed in batches of up to a quarter of the free memory. On a CPU,
    matrices are decomposed one at a time, on all cores. Quantized weights are dequantized batch by batch.

    Args:
        plan: Adapter settings of every projection.
        weights: Base weight of each module; not modified.
        source: Function that returns the matrix to decompose for a base weight.
        generator: Random generator. Random inits draw from the generator in the plan's order.

    Returns:
        The initial factors, in the plan's order.

    Raises:
        ModelError: The shape of a weight differs from the plan, a weight cannot be decomposed, DoRA cannot adapt a
            weight, or tied layers would need different residual weights.
    """
    # Other sources validate the matrices that they return, and do not need a readable weight in the model.
    reads_model = source is BaseWeight.read
    decompositions = _share_decompositions(plan, weights, validate_readable=reads_model)
    read = _refusing_zero_rows(source) if plan.options.dora else source
    results: dict[Projection, InitialFactors] = {}
    with tqdm(total=len(decompositions), desc="decomposing", unit="matrix", leave=False, disable=None, delay=1) as bar:
        for batch in _batches(decompositions):
            bar.set_postfix_str(batch[0].planned.projection.name, refresh=False)
            for decomposition, factors in zip(batch, _compute_factors(batch, read, generator), strict=True):
                results |= {p.projection: InitialFactors(p, factors) for p in decomposition.adapters}
            bar.update(len(batch))
    return [results[planned.projection] for planned in plan.adapters]


def _refusing_zero_rows(source: WeightSource) -> WeightSource:
    """Wrap a weight source to refuse weights with zero rows, which DoRA cannot adapt."""

    def read(weight: BaseWeight) -> Tensor:
        matrix = source(weight)
        validate_dora_rows(matrix, weight.module)
        return matrix

    return read


def _share_decompositions(
    plan: Plan, weights: Mapping[str, BaseWeight], *, validate_readable: bool
) -> list[_Decomposition]:
    """Validate the weights, and list the decompositions to compute. Planned adapters of tied layers share one.

    Raises:
        ModelError: The shape of a weight differs from the plan, a weight is on the meta device or cannot be decomposed,
            or tied layers would need different residual weights.
    """
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
        # Tied layers share a decomposition: in two computations, rounding could make their anchors differ.
        for planned in group:
            key = (weight.key, planned.projection.rows, planned.init, planned.rank, planned.scaling)
            decompositions.setdefault(key, _Decomposition(weight, [])).adapters.append(planned)
    anchored_rows = [
        (decomposition.weight.key, decomposition.planned.projection.rows)
        for decomposition in decompositions.values()
        if decomposition.planned.init.needs_anchor
    ]
    if plan.form is Form.RESIDUAL and len(set(anchored_rows)) < len(anchored_rows):
        raise ModelError(
            "tied layers have different initial factors, but share a single residual weight: use form='anchored'"
        )
    return list(decompositions.values())


def _batches(decompositions: Sequence[_Decomposition]) -> Iterator[list[_Decomposition]]:
    """Yield batches of decompositions with the same key, each as large as the memory allows."""
    by_key: dict[tuple[object, ...], list[_Decomposition]] = {}
    for index, decomposition in enumerate(decompositions):
        # Random inits are not batched, because they draw in the plan's order.
        key = decomposition.batch_key if decomposition.planned.init.needs_anchor else (index,)
        by_key.setdefault(key, []).append(decomposition)
    for group in by_key.values():
        remaining = iter(group)
        while batch := list(islice(remaining, _batch_size(group[0]))):
            yield batch


def _batch_size(decomposition: _Decomposition) -> int:
    device = decomposition.weight.device
    # On a CPU, a single matrix keeps all cores busy, and can use the cache (`svd_cache`), which batches bypass.
    if device.type != "cuda":
        return 1
    bytes_per_entry = 4  # the size of a float32, in which `_PEAK_COPIES` is counted
    free_bytes, _ = torch.cuda.mem_get_info(device)
    out, in_ = decomposition.planned.projection.shape
    bytes_per_matrix = bytes_per_entry * _PEAK_COPIES * out * in_
    return max(1, free_bytes // 4 // bytes_per_matrix)


def _compute_factors(
    batch: Sequence[_Decomposition], source: WeightSource, generator: torch.Generator
) -> list[Factors]:
    def read(decomposition: _Decomposition) -> Tensor:
        return select_rows(source(decomposition.weight), decomposition.planned.projection)

    planned = batch[0].planned
    weight = read(batch[0]) if len(batch) == 1 else torch.stack([read(decomposition) for decomposition in batch])
    factors = planned.init.factors(weight, planned.rank, scaling=planned.scaling, generator=generator)
    if len(batch) == 1:
        return [factors]
    floored = factors.floored.tolist()
    return [Factors(A, B, torch.tensor(n, device="cpu")) for A, B, n in zip(factors.A, factors.B, floored, strict=True)]
