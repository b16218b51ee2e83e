"""LoRA that starts right: function-aware asymmetric initialization (AILoRA, arXiv 2510.08034) on stock PEFT models."""

from ailora.adapters import Plan, adapt, apply_plan, make_plan, plan_of, restore_base, save_adapter
from ailora.errors import AiloraError, AnchorMismatchError, InputError, ModelError
from ailora.inits import PRESETS, Kaiming, Policy, Spectral
from ailora.roles import Projection, Role, find_projections
from ailora.spectral import Band, Triplets, truncated_svd

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AiloraError",
    "AnchorMismatchError",
    "Band",
    "InputError",
    "Kaiming",
    "ModelError",
    "Plan",
    "Policy",
    "Projection",
    "Role",
    "Spectral",
    "Triplets",
    "adapt",
    "apply_plan",
    "find_projections",
    "make_plan",
    "plan_of",
    "restore_base",
    "save_adapter",
    "truncated_svd",
]
