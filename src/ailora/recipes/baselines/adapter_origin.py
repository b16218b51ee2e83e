"""Store the plan of an adapter on its model, and whether the adapter's init has overwritten base weights."""

from __future__ import annotations

from dataclasses import dataclass

from peft import PeftModel
from torch import nn

from ailora.lora import get_plan
from ailora.lora.inject import has_ailora_adapter
from ailora.plan import Form, Plan

_ATTRIBUTE = "ailora_adapter_origin"


@dataclass(frozen=True)
class AdapterOrigin:
    """Plan of an adapter, and its effect on the base weights.

    Attributes:
        plan: Plan of the adapter; None for full fine-tuning, or if a user's function built the adapter without
            `ailora.adapt`.
        overwrites_base: Whether base weights in the model differ from the pretrained weights.
    """

    plan: Plan | None
    overwrites_base: bool


def set_adapter_origin(model: PeftModel, origin: AdapterOrigin) -> None:
    """Store the origin of an adapter on its model."""
    setattr(model, _ATTRIBUTE, origin)


def get_adapter_origin(model: nn.Module) -> AdapterOrigin:
    """Return the origin of a model's adapter. A fully fine-tuned model counts as overwriting the base weights."""
    # ailora.adapt stores the plan on the model, also when a user's function calls ailora.adapt.
    if has_ailora_adapter(model):
        plan = get_plan(model)
        return AdapterOrigin(plan, plan.form is Form.RESIDUAL)
    return getattr(model, _ATTRIBUTE, AdapterOrigin(None, not isinstance(model, PeftModel)))
