"""Origin of a run's adapter, stored on the model: its plan, and whether it changed the base weights."""

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
        plan: plan of the adapter; None if there is no adapter, or a user's function made it.
        overwrites_base: whether the weights of the model differ from those of the base model.
    """

    plan: Plan | None
    overwrites_base: bool


def set_adapter_origin(model: PeftModel, origin: AdapterOrigin) -> None:
    """Store the origin of an adapter on its model."""
    setattr(model, _ATTRIBUTE, origin)


def get_adapter_origin(model: nn.Module) -> AdapterOrigin:
    """Return the origin of a model's adapter; full fine-tuning overwrites the base."""
    # Adapters of ailora.adapt bring their plan along, also if a user's function made them.
    if has_ailora_adapter(model):
        plan = get_plan(model)
        return AdapterOrigin(plan, plan.form is Form.RESIDUAL)
    return getattr(model, _ATTRIBUTE, AdapterOrigin(None, not isinstance(model, PeftModel)))
