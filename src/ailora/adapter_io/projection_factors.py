"""Factors of planned adapters, sliced from the stored factors of modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ailora.adapter_io.lora_weights import LoraWeights
from ailora.lora.anchor import is_off_grid, unstack_A, unstack_B
from ailora.plan.adapter_plan import PlannedAdapter
from ailora.weights.base_weight import select_rows


@dataclass(frozen=True)
class ProjectionFactors:
    """Factors of a planned adapter, sliced from the stored factors of the module.

    Attributes:
        planned: Settings of the adapter.
        A: Rows (r, in) of the module's `A`; with an anchor, `[A0; dA]` (2r, in).
        B: Columns (out, r) of the module's `B`, restricted to the rows of the role unless `covers_all_rows`; with an
            anchor, `[dB, B]` (out, 2r).
        has_anchor: Whether `A` and `B` contain an anchor.
        covers_all_rows: Whether `B` has all rows of a fused weight. This is the case with coupled roles, and after
            training without ailora, which fills the rows of all roles.
        eps: Machine epsilon of the dtypes in which `A` and `B` are stored, the larger of the two.
    """

    planned: PlannedAdapter
    A: Tensor
    B: Tensor
    has_anchor: bool
    covers_all_rows: bool
    eps: float

    @property
    def anchor(self) -> tuple[Tensor, Tensor]:
        """Anchor: `A0` (r, in) and `B0` (out, r). Requires `has_anchor`."""
        (A0, _), (dB, B) = unstack_A(self.A), unstack_B(self.B)
        return A0, B - dB

    @property
    def deltas(self) -> tuple[Tensor, Tensor]:
        """Trained differences from the anchor: `dA` (r, in) and `dB` (out, r). Requires `has_anchor`."""
        return unstack_A(self.A)[1], unstack_B(self.B)[0]

    @property
    def anchor_was_trained(self) -> bool:
        """Whether training without ailora has changed the anchor too; see `anchor.is_off_grid`."""
        return self.has_anchor and is_off_grid(self.B, self.eps)


def split_factors(
    weights: LoraWeights, adapters: Sequence[PlannedAdapter], *, stacked: bool, couple_roles: bool
) -> Iterator[ProjectionFactors]:
    """Read the factors of a module, and split them among the planned adapters.

    Args:
        weights: LoRA weights of the module.
        adapters: Planned adapters of the module, in the order of their roles in the file.
        stacked: Whether the file contains anchors.
        couple_roles: Whether every role trains all rows of a fused weight.

    Yields:
        Factors of each adapter.

    Raises:
        InputError: A factor has NaN or infinite entries, or entries too large for float64 products.
    """
    A, B = weights.read_factors()
    eps = max(torch.finfo(stored.torch_dtype).eps for stored in (weights.A, weights.B))
    ranks = [planned.file_rank if stacked else planned.rank for planned in adapters]
    for planned, rows, columns in zip(adapters, A.split(ranks, dim=0), B.split(ranks, dim=1), strict=True):
        selected = select_rows(columns, planned.projection)
        # ailora keeps `B` at zero in the rows of other roles. Training without ailora does not, so non-zero entries in
        # these rows mean that `B` has all rows.
        all_rows = planned.projection.fused and (
            couple_roles or int(selected.count_nonzero()) < int(columns.count_nonzero())
        )
        has_anchor = stacked and planned.init.needs_anchor
        yield ProjectionFactors(planned, rows, columns if all_rows else selected, has_anchor, all_rows, eps)
