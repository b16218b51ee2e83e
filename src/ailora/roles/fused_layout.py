"""Layout of a fused weight: the rows of each role."""

from __future__ import annotations

from dataclasses import dataclass

from ailora.roles.projection import Role

#: Rows of a weight, as ranges (start, stop).
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FusedLayout:
    """Layout of a fused weight: its rows form equal groups, and each group has the same parts.

    Attributes:
        groups: Number of groups: 1 if each role has a single block of rows, or the number of heads if each head has
            rows for all roles.
        parts: Role and number of rows for each part of a group, in the order of the rows.
    """

    groups: int
    parts: tuple[tuple[Role, int], ...]

    @property
    def out_features(self) -> int:
        """Number of rows of the fused weight."""
        return self.groups * self._stride

    @property
    def _stride(self) -> int:
        """Number of rows of a group."""
        return sum(rows for _, rows in self.parts)

    def rows(self, role: Role) -> Rows:
        """Return the rows of a role as ascending ranges, with adjacent ranges joined."""
        ranges: list[tuple[int, int]] = []
        for group in range(self.groups):
            start = group * self._stride
            for part_role, size in self.parts:
                if part_role == role:
                    if ranges and ranges[-1][1] == start:
                        ranges[-1] = (ranges[-1][0], start + size)
                    else:
                        ranges.append((start, start + size))
                start += size
        return tuple(ranges)

    def __str__(self) -> str:
        parts = " + ".join(f"{role} {rows}" for role, rows in self.parts)
        return parts if self.groups == 1 else f"{self.groups} x ({parts})"
