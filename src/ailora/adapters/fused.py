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

from ailora.adapters.anchored import StackedFactor
from ailora.errors import AnchorMismatchError
from ailora.roles import Role


class PlainFactor(StackedFactor):
    """A factor that trains whole, as that of plain LoRA does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(weight.contiguous().clone())

    def stack(self) -> Tensor:
        return self.value

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        return {"value": weight}

    def require_same_start(self, weight: Tensor, name: str) -> None:
        self.require_shape(weight, name)


class FusedFactor(StackedFactor):
    """A factor of a fused projection: the factors of its roles, as submodules named by role."""

    def __init__(self, parts: Mapping[Role, StackedFactor]) -> None:
        super().__init__()
        self._roles = tuple(role.value for role in parts)
        for role, part in parts.items():
            self.add_module(role.value, part)

    @property
    def parts(self) -> dict[str, StackedFactor]:
        """The factors of the roles."""
        return {role: getattr(self, role) for role in self._roles}

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """The factors of the roles inside a whole factor."""
        raise NotImplementedError

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        # The parts unpack their own key when their turn to load comes.
        return {f"{role}.weight": part for role, part in self.split(weight).items()}

    def require_same_start(self, weight: Tensor, name: str) -> None:
        self.require_shape(weight, name)
        for role, part in self.split(weight).items():
            self.parts[role].require_same_start(part, f"{name}[{role}]")


class FusedA(FusedFactor):
    """`lora_A` of a fused projection: the roles' factors, one above the other."""

    def stack(self) -> Float[Tensor, "r in_"]:
        return torch.cat([part.stack() for part in self.parts.values()], dim=0)

    def split(self, weight: Float[Tensor, "r in_"]) -> dict[str, Tensor]:
        sizes = [part.stack().shape[0] for part in self.parts.values()]
        return dict(zip(self._roles, weight.split(sizes, dim=0), strict=True))


class FusedB(FusedFactor):
    """`lora_B` of a fused projection: the roles' factors side by side, each on its own rows.

    Args:
        parts: the factor of each role, (rows of the role, r), or (out, r) where the roles are coupled.
        rows: role -> its rows in the weight, as ranges.
        out_features: rows of the whole weight.
    """

    def __init__(
        self, parts: Mapping[Role, StackedFactor], rows: Mapping[Role, tuple[tuple[int, int], ...]], out_features: int
    ) -> None:
        super().__init__(parts)
        self.out_features = out_features
        for role in parts:
            numbers = list(chain.from_iterable(range(start, stop) for start, stop in rows[role]))
            device = parts[role].stack().device
            self.register_buffer(f"{role}_rows", torch.tensor(numbers, device=device), persistent=False)

    def _rows(self, role: str) -> Tensor:
        return getattr(self, f"{role}_rows")

    def stack(self) -> Float[Tensor, "out r"]:
        blocks = []
        for role, part in self.parts.items():
            block = part.stack()
            whole = block.new_zeros(self.out_features, block.shape[1])
            blocks.append(whole.index_copy(0, self._rows(role), block))
        return torch.cat(blocks, dim=1)

    def split(self, weight: Float[Tensor, "out r"]) -> dict[str, Tensor]:
        sizes = [part.stack().shape[1] for part in self.parts.values()]
        blocks = zip(self._roles, weight.split(sizes, dim=1), strict=True)
        return {role: block.index_select(0, self._rows(role).to(weight.device)) for role, block in blocks}

    def require_same_start(self, weight: Tensor, name: str) -> None:
        super().require_same_start(weight, name)
        whole = torch.zeros_like(weight)
        sizes = [part.stack().shape[1] for part in self.parts.values()]
        for role, block in zip(self._roles, whole.split(sizes, dim=1), strict=True):
            block[self._rows(role).to(weight.device)] = 1
        if (weight * (1 - whole)).any():
            raise AnchorMismatchError(
                f"{name}: the file's factor reaches rows of other roles: it was trained whole, by a stock "
                "trainer. Load it under another adapter name, or with PeftModel.from_pretrained."
            )
