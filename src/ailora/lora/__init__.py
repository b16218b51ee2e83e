"""Adapters on stock PEFT models: initial factors, the anchored form, injection."""

from ailora.lora.adapt import adapt, apply_plan, get_plan
from ailora.lora.anchored_factor import AnchoredFactor

__all__ = ["AnchoredFactor", "adapt", "apply_plan", "get_plan"]
