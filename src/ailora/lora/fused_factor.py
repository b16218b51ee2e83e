"""Stock LoRA factors of a fused projection, joined from a factor for each role.

For the roles query and value, `A = [A_q; A_v]` and `B = [B_q, B_v]`. A block of `B`, such as `B_q`, is zero outside
the rows of its role, so a fused projection trains exactly like separate projections. With `couple_roles`, a block has
entries in all rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.errors import AnchorMismatchError
from ailora.lora.packed_factor import PackedFactor
from ailora.roles import Role
from ailora.roles.fused_layout import Rows


class FusedFactor(PackedFactor):
    """Factor of a fused projection. The factor of each role is a submodule named after the role."""

    def __init__(self, parts: Mapping[Role, PackedFactor]) -> None:
        super().__init__()
        self._roles = tuple(role.value for role in parts)
        for role, part in parts.items():
            self.add_module(role.value, part)

    @property
    def parts(self) -> dict[str, PackedFactor]:
        """Factors by role name."""
        return {role: getattr(self, role) for role in self._roles}

    @abstractmethod
    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """Join the factors of the roles, in the order of `parts`."""

    @abstractmethod
    def split(self, weight: Tensor, shapes: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Tensor]:
        """Split a joined factor into the factors of the roles.

        Args:
            weight: A factor returned by `join`.
            shapes: Shape of each role's factor. None means the shapes of `parts`.

        Returns:
            The factors by role.
        """

    @property
    def shape(self) -> tuple[int, int]:
        return self._joined_shape([part.shape for part in self.parts.values()])

    @property
    def file_shape(self) -> tuple[int, int]:
        return self._joined_shape([part.file_shape for part in self.parts.values()])

    def stack(self) -> Tensor:
        return self.join(part.stack() for part in self.parts.values())

    def to_file(self) -> Tensor:
        return self.join(part.to_file() for part in self.parts.values())

    def from_file(self, weight: Tensor) -> Tensor:
        file_factors = self.split(weight, {role: part.file_shape for role, part in self.parts.items()})
        return self.join(part.from_file(file_factors[role]) for role, part in self.parts.items())

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        # PyTorch later calls the load hook of each part, which unpacks the key `weight` of the part.
        return {f"{role}.weight": packed for role, packed in self.split(weight).items()}

    def restart(self, weight: Tensor) -> None:
        for role, packed in self.split(weight).items():
            self.parts[role].restart(packed)

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        self.validate_shape(weight, name)
        for role, packed in self.split(weight).items():
            self.parts[role].validate_same_anchor(packed, f"{name}[{role}]")

    @abstractmethod
    def _joined_shape(self, shapes: list[tuple[int, int]]) -> tuple[int, int]:
        """Return the shape of the joined factor."""

    def _shapes(self, shapes: Mapping[str, tuple[int, int]] | None) -> list[tuple[int, int]]:
        """Return the given shapes, or the shapes of `parts` for None, in the order of `parts`."""
        return [shapes[role] if shapes else part.shape for role, part in self.parts.items()]


class FusedA(FusedFactor):
    """`lora_A` of a fused projection: the roles' factors, stacked in the rank dimension."""

    def join(self, parts: Iterable[Float[Tensor, "_ in_"]]) -> Float[Tensor, "r in_"]:
        return torch.cat(list(parts), dim=0)

    def split(
        self, weight: Float[Tensor, "r in_"], shapes: Mapping[str, tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        sizes = [rank for rank, _ in self._shapes(shapes)]
        return dict(zip(self._roles, weight.split(sizes, dim=0), strict=True))

    def _joined_shape(self, shapes: list[tuple[int, int]]) -> tuple[int, int]:
        return sum(rank for rank, _ in shapes), shapes[0][1]


class FusedB(FusedFactor):
    """`lora_B` of a fused projection: the roles' factors side by side, each zero outside the rows that it trains.

    Args:
        parts: Factor of each role, (rows, r) for the role's rows, or (out, r) for coupled roles.
        rows: Rows of the weight that each role's factor trains, as ranges.
        out_features: Number of rows of the weight.
    """

    def __init__(self, parts: Mapping[Role, PackedFactor], rows: Mapping[Role, Rows], out_features: int) -> None:
        super().__init__(parts)
        self.out_features = out_features
        self._ranges = {role.value: rows[role] for role in parts}
        for role, part in parts.items():
            indices = list(chain.from_iterable(range(start, stop) for start, stop in rows[role]))
            device = next(part.parameters()).device
            self.register_buffer(f"{role}_rows", torch.tensor(indices, device=device), persistent=False)

    def join(self, parts: Iterable[Float[Tensor, "_ _"]]) -> Float[Tensor, "out r"]:
        blocks = []
        for role, part in zip(self._roles, parts, strict=True):
            zeros = part.new_zeros(self.out_features, part.shape[1])
            blocks.append(zeros.index_copy(0, getattr(self, f"{role}_rows").to(part.device), part))
        return torch.cat(blocks, dim=1)

    def split(
        self, weight: Float[Tensor, "out r"], shapes: Mapping[str, tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        # Slice by row ranges: an engine such as FSDP2 may keep the index buffers on the meta device while it loads.
        return {
            role: torch.cat([block[start:stop] for start, stop in self._ranges[role]], dim=0)
            for role, block in self._blocks(weight, shapes).items()
        }

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        super().validate_same_anchor(weight, name)
        for role, block in self._blocks(weight).items():
            outside = block.clone()
            for start, stop in self._ranges[role]:
                outside[start:stop] = 0
            if outside.any():
                raise AnchorMismatchError(
                    f"{name}: the factor of {role} is not zero in rows of other roles: it was trained without ailora. "
                    "Load the file under a new adapter name, or into the base model with PeftModel.from_pretrained"
                )

    def _blocks(self, weight: Tensor, shapes: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Tensor]:
        """Split a joined factor into the columns (out, r) of each role."""
        sizes = [rank for _, rank in self._shapes(shapes)]
        return dict(zip(self._roles, weight.split(sizes, dim=1), strict=True))

    def _joined_shape(self, shapes: list[tuple[int, int]]) -> tuple[int, int]:
        return self.out_features, sum(rank for _, rank in shapes)
