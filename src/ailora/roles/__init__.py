"""Which module of a transformer plays which role, and which rows of a fused weight."""

from ailora.roles.find import find_projections, folded, linear_modules, shape_of
from ailora.roles.layout import FusedLayout
from ailora.roles.projection import Attention, Projection, Role, parse_role
from ailora.roles.rest import LeftAlone, left_alone

__all__ = [
    "Attention",
    "FusedLayout",
    "LeftAlone",
    "Projection",
    "Role",
    "find_projections",
    "folded",
    "left_alone",
    "linear_modules",
    "parse_role",
    "shape_of",
]
