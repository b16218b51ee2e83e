"""A projection: one linear map of a transformer, and the role it plays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ailora.errors import parse_choice


class Role(StrEnum):
    """What a projection is for."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OUTPUT = "output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"


class Attention(StrEnum):
    """Where the keys and values of an attention come from."""

    SELF = "self"
    CROSS = "cross"


@dataclass(frozen=True)
class Projection:
    """One linear map `y = W x` of a model, W (out, in): a whole weight, or the rows of one role in a fused weight.

    Attributes:
        module: name of the module in the model, as in `named_modules()`.
        role: what it is for.
        attention: self or cross; None for a projection of a feed-forward block.
        rows: the rows of the module's weight that are W, as ranges (start, stop).
        shape: the module's whole map (out, in), whichever way it is stored.
        dtype: the storage dtype of the weight, as torch prints it without its prefix; of a quantized one with the class
            that holds it.
        rule: what decided the role: the name of the catalog's family, or the regular expression of `role_names`.
        layout: how the rows of a fused weight are dealt out, in words; empty for a whole weight.
    """

    module: str
    role: Role
    attention: Attention | None
    rows: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    dtype: str
    rule: str
    layout: str = ""

    @property
    def out_features(self) -> int:
        """Rows of W."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def in_features(self) -> int:
        """Columns of W."""
        return self.shape[1]

    @property
    def fused(self) -> bool:
        """Whether the module's weight holds more than this projection."""
        return self.out_features != self.shape[0]

    @property
    def name(self) -> str:
        """The module's name, with the role where the module has several."""
        return f"{self.module}[{self.role}]" if self.fused else self.module

    @property
    def max_rank(self) -> int:
        """The largest rank of a factorization of W."""
        return min(self.out_features, self.in_features)


def parse_role(role: Role | str) -> Role:
    """The role that a name stands for.

    Raises:
        InputError: no role has that name.
    """
    return parse_choice("role", role, Role)
