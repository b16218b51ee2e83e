"""Which module of a transformer plays which role, and which rows of a fused weight."""

from ailora.roles.detect import collapse_layer_index, find_projections, linear_modules, weight_shape
from ailora.roles.fused_layout import FusedLayout
from ailora.roles.projection import Attention, Projection, Role, parse_role
from ailora.roles.unmatched import UnmatchedModule, find_unmatched

__all__ = [
    "Attention",
    "FusedLayout",
    "Projection",
    "Role",
    "UnmatchedModule",
    "collapse_layer_index",
    "find_projections",
    "find_unmatched",
    "linear_modules",
    "parse_role",
    "weight_shape",
]
