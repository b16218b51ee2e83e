"""Plans, and the adapters that they describe, on stock PEFT models."""

from ailora.adapters.anchored import AnchoredFactor
from ailora.adapters.apply import adapt, apply_plan, plan_of
from ailora.adapters.files import restore_base, save_adapter
from ailora.adapters.plan import Form, Plan, PlannedAdapter
from ailora.adapters.planning import make_plan
from ailora.adapters.resume import resume
from ailora.adapters.sidecar import SIDECAR_NAME, Sidecar, find_sidecar

__all__ = [
    "SIDECAR_NAME",
    "AnchoredFactor",
    "Form",
    "Plan",
    "PlannedAdapter",
    "Sidecar",
    "adapt",
    "apply_plan",
    "find_sidecar",
    "make_plan",
    "plan_of",
    "restore_base",
    "resume",
    "save_adapter",
]
