"""How every planned adapter starts: all decompositions of a model, before the model is touched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ailora.errors import ModelError
from ailora.inits import Factors
from ailora.plan.adapter_plan import Form, Plan, PlannedAdapter
from ailora.roles import Projection, weight_shape
from ailora.weights.base_weight import (
    base_layer,
    select_rows,
    validate_loaded,
    validate_readable,
    weight_device,
    weight_key,
)
from ailora.weights.weight_source import Source

#: fp32 copies of a matrix that a decomposition needs at its peak.
_COPIES = 6


@dataclass(frozen=True)
class InitialFactors:
    """The start of one planned adapter, on the device of its layer.

    Attributes:
        planned: what was planned.
        factors: `A0` and `B0`.
    """

    planned: PlannedAdapter
    factors: Factors


@dataclass(frozen=True)
class _Job:
    """One decomposition, and the planned adapters that share it: tied layers have one weight."""

    source: Source
    layer: nn.Module
    sharing: list[PlannedAdapter]

    @property
    def planned(self) -> PlannedAdapter:
        return self.sharing[0]

    def weight(self) -> Tensor:
        """The rows that are decomposed, (out, in); a copy where the weight is fused or quantized."""
        projection = self.planned.projection
        return select_rows(self.source(projection.module), projection)

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind can be decomposed at once."""
        p = self.planned
        shape = (p.projection.out_features, p.projection.in_features)
        dtype = getattr(getattr(self.layer, "weight", None), "dtype", None)
        return (shape, dtype, weight_device(self.layer), p.init, p.rank, p.scaling)


def compute_initial_factors(
    base: nn.Module, plan: Plan, generator: torch.Generator, source: Source, *, from_checkpoint: bool = False
) -> list[InitialFactors]:
    """The start of every planned adapter, in the plan's order, with a progress bar on a terminal.

    On a GPU, matrices of equal shape are decomposed at once, as many as fit into a quarter of its free memory; on a CPU
    one after the other with all cores. A quantized weight is dequantized when its turn comes.

    Args:
        base: the base model; not changed.
        plan: what is planned.
        generator: draws the random starts, in the plan's order.
        source: where the weights come from.
        from_checkpoint: whether they come from a checkpoint, so that the model's own need not be readable.

    Raises:
        ModelError: a planned module is missing or has another shape, a weight has no decomposition.
    """
    jobs = _jobs(base, plan, source, from_checkpoint=from_checkpoint)
    made: dict[Projection, InitialFactors] = {}
    with tqdm(total=len(jobs), desc="decomposing", unit="matrix", leave=False, disable=None) as bar:
        for batch in _batches(jobs):
            bar.set_postfix_str(batch[0].planned.projection.name)
            for job, factors in zip(batch, _factors(batch, generator), strict=True):
                made |= {p.projection: InitialFactors(p, factors) for p in job.sharing}
            bar.update(len(batch))
    return [made[planned.projection] for planned in plan.adapters]


def _jobs(base: nn.Module, plan: Plan, source: Source, *, from_checkpoint: bool) -> list[_Job]:
    jobs: dict[tuple[object, ...], _Job] = {}
    for module, group in plan.modules.items():
        layer = base_layer(base, module)
        if weight_shape(layer) != group[0].projection.shape:
            raise ModelError(f"{module} is {weight_shape(layer)}, the plan says {group[0].projection.shape}")
        validate_loaded(layer, module)
        if not from_checkpoint:
            validate_readable(layer, module)
        for planned in group:
            key = (weight_key(layer), planned.projection.rows, planned.init, planned.rank, planned.scaling)
            jobs.setdefault(key, _Job(source, layer, [])).sharing.append(planned)
    anchored = [key[:2] for key, job in jobs.items() if job.planned.init.anchored]
    if plan.form is Form.RESIDUAL and len(set(anchored)) < len(anchored):
        raise ModelError(
            "a tied weight has two different starts, which the residual form cannot subtract: use anchored"
        )
    return list(jobs.values())


def _batches(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Jobs of one kind together, in chunks that fit; the order of random starts is kept, as they are never joined."""
    by_kind: dict[tuple[object, ...], list[_Job]] = {}
    for number, job in enumerate(jobs):
        kind = job.kind if job.planned.init.anchored else (number,)
        by_kind.setdefault(kind, []).append(job)
    for same in by_kind.values():
        rest = iter(same)
        while chunk := list(islice(rest, _chunk_size(same[0]))):
            yield chunk


def _chunk_size(job: _Job) -> int:
    device = weight_device(job.layer)
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    out, in_ = job.planned.projection.shape
    return max(1, free // 4 // (4 * _COPIES * out * in_))


def _factors(batch: list[_Job], generator: torch.Generator) -> list[Factors]:
    planned = batch[0].planned
    weight = batch[0].weight() if len(batch) == 1 else torch.stack([job.weight() for job in batch])
    made = planned.init.factors(weight, planned.rank, scaling=planned.scaling, generator=generator)
    if len(batch) == 1:
        return [made]
    floored = made.floored.tolist()
    return [Factors(A, B, torch.tensor(n)) for A, B, n in zip(made.A, made.B, floored, strict=True)]
