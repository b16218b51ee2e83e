"""Which module of a transformer plays which role."""

from ailora.roles.find import find_projections
from ailora.roles.projection import Attention, Projection, Role, parse_role

__all__ = ["Attention", "Projection", "Role", "find_projections", "parse_role"]
