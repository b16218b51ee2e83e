"""LoRA that starts right: function-aware asymmetric initialization (AILoRA, arXiv 2510.08034) on stock PEFT."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ailora.adapter_io import restore_base, resume, save_adapter
    from ailora.errors import AiloraError, AnchorMismatchError, InputError, ModelError
    from ailora.inits import PRESETS, Kaiming, Policy, Spectral
    from ailora.lora import adapt, apply_plan, get_plan
    from ailora.model_path import resolve_model
    from ailora.plan import Plan, make_plan
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
    "get_plan",
    "make_plan",
    "resolve_model",
    "restore_base",
    "resume",
    "save_adapter",
    "truncated_svd",
]

# Load names on first use: importing torch, peft and transformers takes seconds, and `ailora --help` needs none of them.
_PACKAGES = {
    "ailora.adapter_io": ("restore_base", "resume", "save_adapter"),
    "ailora.errors": ("AiloraError", "AnchorMismatchError", "InputError", "ModelError"),
    "ailora.inits": ("PRESETS", "Kaiming", "Policy", "Spectral"),
    "ailora.lora": ("adapt", "apply_plan", "get_plan"),
    "ailora.model_path": ("resolve_model",),
    "ailora.plan": ("Plan", "make_plan"),
    "ailora.roles": ("Projection", "Role", "find_projections"),
    "ailora.spectral": ("Band", "Triplets", "truncated_svd"),
}
_PACKAGE_OF = {name: package for package, names in _PACKAGES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module 'ailora' has no attribute {name!r}")
    return getattr(import_module(_PACKAGE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
