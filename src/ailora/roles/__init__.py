"""Roles of a transformer's projections, found by module names and by rows of fused weights."""

from ailora.roles.detect import find_linear_modules, find_projections, weight_shape
from ailora.roles.fused_layout import FusedLayout
from ailora.roles.projection import Attention, Projection, Role, parse_role
from ailora.roles.unmatched import UnmatchedModule, find_unmatched

__all__ = [
    "Attention",
    "FusedLayout",
    "Projection",
    "Role",
    "UnmatchedModule",
    "find_linear_modules",
    "find_projections",
    "find_unmatched",
    "parse_role",
    "weight_shape",
]
