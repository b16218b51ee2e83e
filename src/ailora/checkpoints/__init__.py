"""Checkpoints larger than memory: initialize, export, merge, verify and inspect adapters for them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ailora.checkpoints.export_adapter import ExportReport, export
    from ailora.checkpoints.init_plan import InitPlan
    from ailora.checkpoints.initialize import InitReport, init
    from ailora.checkpoints.inspect_path import inspect
    from ailora.checkpoints.merge_adapter import MergeReport, merge
    from ailora.checkpoints.verify_adapter import Check, Verdict, verify

__all__ = [
    "Check",
    "ExportReport",
    "InitPlan",
    "InitReport",
    "MergeReport",
    "Verdict",
    "export",
    "init",
    "inspect",
    "merge",
    "verify",
]

# Load names on first use: every command imports `output_dir` from this package, but many commands need no torch.
_MODULES = {
    "export_adapter": ("ExportReport", "export"),
    "init_plan": ("InitPlan",),
    "initialize": ("InitReport", "init"),
    "inspect_path": ("inspect",),
    "merge_adapter": ("MergeReport", "merge"),
    "verify_adapter": ("Check", "Verdict", "verify"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
