"""One stock LoRA factor for a fused projection, made of a factor for each role.

The file of a fused projection is the files of its roles, stacked: `A = [A_q; A_v]`, and `B = [B_q, B_v]` where each
block is zero outside the rows of its role. So it trains as the same model with separate projections would.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import AnchorMismatchError
from ailora.lora.packed_factor import PackedFactor
from ailora.roles import Role
from ailora.weights.dtensor import distribute_like, full_tensor, validate_unsharded


class PlainFactor(PackedFactor):
    """A factor that trains whole, as that of plain LoRA does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._shape = (weight.shape[0], weight.shape[1])
        self.value = nn.Parameter(weight.contiguous().clone())

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def stack(self) -> Tensor:
        return validate_unsharded(full_tensor(self.value), self._shape)

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        return {"value": distribute_like(weight.contiguous(), self.value)}

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        self.validate_shape(weight, name)


class FusedFactor(PackedFactor):
    """A factor of a fused projection: the factors of its roles, as submodules named by role."""

    def __init__(self, parts: Mapping[Role, PackedFactor]) -> None:
        super().__init__()
        self._roles = tuple(role.value for role in parts)
        for role, part in parts.items():
            self.add_module(role.value, part)

    @property
    def parts(self) -> dict[str, PackedFactor]:
        """The factors of the roles."""
        return {role: getattr(self, role) for role in self._roles}

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """The factors of the roles inside a whole factor."""
        raise NotImplementedError

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        # The parts unpack their own key when their turn to load comes.
        return {f"{role}.weight": part for role, part in self.split(weight).items()}

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        self.validate_shape(weight, name)
        for role, part in self.split(weight).items():
            self.parts[role].validate_same_anchor(part, f"{name}[{role}]")


class FusedA(FusedFactor):
    """`lora_A` of a fused projection: the roles' factors, one above the other."""

    @property
    def shape(self) -> tuple[int, int]:
        shapes = [part.shape for part in self.parts.values()]
        return sum(rows for rows, _ in shapes), shapes[0][1]

    def stack(self) -> Float[Tensor, "r in_"]:
        return torch.cat([part.stack() for part in self.parts.values()], dim=0)

    def split(self, weight: Float[Tensor, "r in_"]) -> dict[str, Tensor]:
        sizes = [part.shape[0] for part in self.parts.values()]
        return dict(zip(self._roles, weight.split(sizes, dim=0), strict=True))


class FusedB(FusedFactor):
    """`lora_B` of a fused projection: the roles' factors side by side, each on its own rows.

    Args:
        parts: the factor of each role, (rows of the role, r), or (out, r) where the roles are coupled.
        rows: role -> its rows in the weight, as ranges.
        out_features: rows of the whole weight.
    """

    def __init__(
        self, parts: Mapping[Role, PackedFactor], rows: Mapping[Role, tuple[tuple[int, int], ...]], out_features: int
    ) -> None:
        super().__init__(parts)
        self.out_features = out_features
        self._ranges = {role.value: rows[role] for role in parts}
        for role in parts:
            numbers = list(chain.from_iterable(range(start, stop) for start, stop in rows[role]))
            device = parts[role].stack().device
            self.register_buffer(f"{role}_rows", torch.tensor(numbers, device=device), persistent=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, sum(part.shape[1] for part in self.parts.values())

    def stack(self) -> Float[Tensor, "out r"]:
        blocks = []
        for role, part in self.parts.items():
            block = part.stack()
            zeros = block.new_zeros(self.out_features, block.shape[1])
            blocks.append(zeros.index_copy(0, getattr(self, f"{role}_rows"), block))
        return torch.cat(blocks, dim=1)

    def split(self, weight: Float[Tensor, "out r"]) -> dict[str, Tensor]:
        sizes = [part.shape[1] for part in self.parts.values()]
        blocks = zip(self._roles, weight.split(sizes, dim=1), strict=True)
        # By ranges: an engine may have the buffers of rows on the meta device while it loads.
        return {
            role: torch.cat([block[start:stop] for start, stop in self._ranges[role]], dim=0) for role, block in blocks
        }

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        super().validate_same_anchor(weight, name)
        beyond = torch.ones_like(weight)
        sizes = [part.shape[1] for part in self.parts.values()]
        for role, block in zip(self._roles, beyond.split(sizes, dim=1), strict=True):
            for start, stop in self._ranges[role]:
                block[start:stop] = 0
        if (weight * beyond).any():
            raise AnchorMismatchError(
                f"{name}: the file's factor reaches rows of other roles: it was trained whole, by a stock "
                "trainer. Load it under another adapter name, or with PeftModel.from_pretrained."
            )
