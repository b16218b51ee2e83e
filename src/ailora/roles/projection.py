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
    """One linear map `y = W x` of a model, W (out, in).

    Attributes:
        module: name of the module in the model, as in `named_modules()`.
        role: what it is for.
        attention: self or cross; None for a projection of a feed-forward block.
        out_features: rows of W.
        in_features: columns of W.
        dtype: the storage dtype of W, as torch prints it without its prefix.
        rule: what decided the role: the name of the catalog's family, or `role_names`.
        rows: the rows of the module's weight that belong to this projection, as ranges (start, stop).
    """

    module: str
    role: Role
    attention: Attention | None
    out_features: int
    in_features: int
    dtype: str
    rule: str
    rows: tuple[tuple[int, int], ...]

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
