"""Fused projections: which rows of one weight belong to which role."""

from __future__ import annotations

from dataclasses import dataclass

from ailora.roles.projection import Role

#: Rows of a weight, as ranges (start, stop).
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FusedLayout:
    """How the rows of a fused weight are dealt out: `groups` equal groups, each cut into the same parts.

    Attributes:
        groups: how often the parts repeat: 1 for whole blocks, the number of heads where each head has its own rows.
        parts: role and number of rows, in the order in which they lie in one group.
    """

    groups: int
    parts: tuple[tuple[Role, int], ...]

    @property
    def out_features(self) -> int:
        """Rows of the fused weight."""
        return self.groups * self._stride

    @property
    def _stride(self) -> int:
        return sum(rows for _, rows in self.parts)

    def rows(self, role: Role) -> Rows:
        """The rows of a role, in the order of the weight, ranges that touch joined; empty when it has none."""
        ranges: list[tuple[int, int]] = []
        for group in range(self.groups):
            start = group * self._stride
            for name, size in self.parts:
                if name == role:
                    if ranges and ranges[-1][1] == start:
                        ranges[-1] = (ranges[-1][0], start + size)
                    else:
                        ranges.append((start, start + size))
                start += size
        return tuple(ranges)

    def __str__(self) -> str:
        parts = " + ".join(f"{role} {rows}" for role, rows in self.parts)
        return parts if self.groups == 1 else f"{self.groups} x ({parts})"
