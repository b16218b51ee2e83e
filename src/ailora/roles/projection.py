"""Projections: linear maps of a transformer, each with a role."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ailora.errors import parse_choice


class Role(StrEnum):
    """Role of a projection in an attention or in a feed-forward block.

    Examples:
        >>> [role.value for role in Role]
        ['query', 'key', 'value', 'output', 'gate', 'up', 'down']
    """

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OUTPUT = "output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"


class Attention(StrEnum):
    """Kind of attention: keys and values from the sequence of the queries (self) or from a second one (cross)."""

    SELF = "self"
    CROSS = "cross"


@dataclass(frozen=True)
class Projection:
    """Linear map `y = W x` of a model, W (out, in): a whole weight, or the rows of a role in a fused weight.

    Attributes:
        module: Name of the module in the model, as in `named_modules()`.
        role: Role of the projection.
        attention: Self or cross. None for a projection of a feed-forward block.
        rows: Rows of W in the module's weight, as ranges (start, stop).
        shape: Shape (out, in) of the module's whole weight, even if the module stores the transpose.
        dtype: Dtype of the stored weight, such as `float32`. For a quantized weight, the tensor's class is appended in
            brackets. If the layer has no tensor `weight`, this is the name of the layer's class.
        rule: Source of the role: a model type in the catalog, or a regular expression of `role_names`.
        layout: Description of a fused weight's layout. Empty for a whole weight.

    Examples:
        >>> from ailora import find_projections
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        >>> projection = find_projections(BertModel(config))[0]
        >>> projection.module, projection.role.value, projection.shape
        ('encoder.layer.0.attention.self.query', 'query', (32, 32))
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
        """Number of rows of W."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def in_features(self) -> int:
        """Number of columns of W."""
        return self.shape[1]

    @property
    def fused(self) -> bool:
        """Whether W is a part of the module's weight."""
        return self.out_features != self.shape[0]

    @property
    def name(self) -> str:
        """Name of the module, with the role in brackets if the weight is fused: `attn.c_attn[query]`."""
        return f"{self.module}[{self.role}]" if self.fused else self.module

    @property
    def max_rank(self) -> int:
        """Largest rank of a factorization of W: min(out, in)."""
        return min(self.out_features, self.in_features)


def parse_role(role: Role | str) -> Role:
    """Parse the name of a role.

    Raises:
        InputError: The role is unknown.
    """
    return parse_choice("role", role, Role)
