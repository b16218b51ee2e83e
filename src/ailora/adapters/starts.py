"""How every planned adapter starts: all decompositions of a model, before the model is touched."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ailora.adapters.plan import Form, Plan, PlannedAdapter
from ailora.adapters.weights import base_layer, read_weight, residual_weight, rows_of, stored_weight
from ailora.errors import ModelError
from ailora.inits import Factors
from ailora.roles import Projection

#: fp32 copies of a matrix that a decomposition needs at its peak.
_COPIES = 6


class LossyResidualWarning(UserWarning):
    """A residual weight was rounded to a dtype that loses much of what was subtracted."""


@dataclass(frozen=True)
class Start:
    """The start of one planned adapter, on the device of its layer.

    Attributes:
        planned: what was planned.
        factors: `A0` and `B0`.
        residual: `W - s B0 A0` in the dtype of W (rows of the projection), for the residual form; else None.
    """

    planned: PlannedAdapter
    factors: Factors
    residual: Tensor | None


@dataclass(frozen=True)
class _Job:
    """One decomposition, and the planned adapters that share it: tied layers have one weight."""

    whole: Tensor
    sharing: list[PlannedAdapter]
    stored: Tensor

    @property
    def planned(self) -> PlannedAdapter:
        return self.sharing[0]

    @property
    def weight(self) -> Tensor:
        """The rows that are decomposed, (out, in); a copy where the weight is fused."""
        return rows_of(self.whole, self.planned.projection)

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind can be decomposed at once."""
        p = self.planned
        return (
            p.projection.out_features,
            p.projection.in_features,
            self.whole.dtype,
            self.whole.device,
            p.init,
            p.rank,
            p.scaling,
        )


def compute_starts(base: nn.Module, plan: Plan, generator: torch.Generator) -> list[Start]:
    """The start of every planned adapter, in the plan's order, with a progress bar on a terminal.

    On a GPU, matrices of equal shape are decomposed at once, as many as fit into a quarter of its free memory; on a CPU
    one after the other with all cores.

    Args:
        base: the base model; not changed.
        plan: what is planned.
        generator: draws the random starts, in the plan's order.

    Raises:
        ModelError: a planned module is missing or has another shape, a weight has no decomposition.
    """
    jobs = _jobs(base, plan)
    made: dict[Projection, Start] = {}
    with tqdm(total=len(jobs), desc="decomposing", unit="matrix", leave=False, disable=None) as bar:
        for batch in _batches(jobs):
            bar.set_postfix_str(batch[0].planned.projection.name)
            for job, factors in zip(batch, _factors(batch, generator), strict=True):
                residual = _residual(plan, job, factors)
                made |= {p.projection: Start(p, factors, residual) for p in job.sharing}
            bar.update(len(batch))
    return [made[planned.projection] for planned in plan.adapters]


def _jobs(base: nn.Module, plan: Plan) -> list[_Job]:
    modules = dict(base.named_modules())
    jobs: dict[tuple[object, ...], _Job] = {}
    for planned in plan.adapters:
        projection = planned.projection
        if projection.module not in modules:
            raise ModelError(f"the plan names {projection.module}, which this {type(base).__name__} does not have")
        layer = base_layer(base, projection.module)
        weight = read_weight(layer, projection.module)
        if tuple(weight.shape) != projection.shape:
            raise ModelError(f"{projection.module} is {tuple(weight.shape)}, the plan says {projection.shape}")
        stored = stored_weight(layer)
        key = (id(stored), projection.rows, planned.init, planned.rank, planned.scaling)
        jobs.setdefault(key, _Job(weight, [], stored)).sharing.append(planned)
    weights = [(id(job.stored), job.planned.projection.rows) for job in jobs.values() if job.planned.init.anchored]
    if plan.form is Form.RESIDUAL and len(set(weights)) < len(weights):
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
        while chunk := list(islice(rest, _chunk_size(same[0].whole))):
            yield chunk


def _chunk_size(weight: Tensor) -> int:
    if not weight.is_cuda:
        return 1
    free, _ = torch.cuda.mem_get_info(weight.device)
    return max(1, free // 4 // (4 * _COPIES * weight.numel()))


def _factors(batch: list[_Job], generator: torch.Generator) -> list[Factors]:
    planned = batch[0].planned
    weight = batch[0].weight if len(batch) == 1 else torch.stack([job.weight for job in batch])
    made = planned.init.factors(weight, planned.rank, scaling=planned.scaling, generator=generator)
    if len(batch) == 1:
        return [made]
    floored = made.floored.tolist()
    return [Factors(A, B, torch.tensor(n)) for A, B, n in zip(made.A, made.B, floored, strict=True)]


def _residual(plan: Plan, job: _Job, factors: Factors) -> Tensor | None:
    planned, weight = job.planned, job.weight
    if plan.form is not Form.RESIDUAL or not planned.init.anchored:
        return None
    exact = residual_weight(weight, factors, planned.scaling)
    stored = exact.to(weight.dtype)
    moved = (exact - weight.to(exact.dtype)).norm()
    lost = (stored.to(exact.dtype) - exact).norm() / moved if moved > 0 else 0.0
    if lost > 1e-3:
        warnings.warn(
            f"{planned.projection.name}: storing W - s B0 A0 as {weight.dtype} loses {lost:.0%} of the subtracted "
            "part; use float32 weights or form='anchored'",
            LossyResidualWarning,
            stacklevel=5,
        )
    return stored
