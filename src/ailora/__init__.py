"""LoRA that starts right: function-aware asymmetric initialization (AILoRA, arXiv 2510.08034) on stock PEFT."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ailora.adapters import Plan, adapt, apply_plan, make_plan, plan_of, restore_base, resume, save_adapter
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
    "resume",
    "save_adapter",
    "truncated_svd",
]

# Loaded on first use: torch, peft and transformers take seconds, and `ailora --help` needs none of them.
_PARTS = ("errors", "spectral", "roles", "inits", "adapters")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for part in _PARTS:
            module = import_module(f"ailora.{part}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'ailora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
