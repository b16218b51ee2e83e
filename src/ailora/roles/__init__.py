"""Which module of a transformer plays which role, and which rows of a fused weight."""

from ailora.roles.find import find_projections, shape_of
from ailora.roles.layout import FusedLayout
from ailora.roles.projection import Attention, Projection, Role, parse_role

__all__ = ["Attention", "FusedLayout", "Projection", "Role", "find_projections", "parse_role", "shape_of"]
