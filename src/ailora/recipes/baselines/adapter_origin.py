"""How the model of a run was made: kept with the model, for what comes after the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from ailora.lora import get_plan
from ailora.lora.inject import has_ailora_adapter
from ailora.plan import Form, Plan

_ATTRIBUTE = "ailora_adapter_origin"


@dataclass(frozen=True)
class AdapterOrigin:
    """How a model was made.

    Attributes:
        plan: which projections have an adapter; None if there is none, or if it is unknown.
        overwrites_base: whether the weights under the adapter are no longer those of the base model.
    """

    plan: Plan | None
    overwrites_base: bool


def set_adapter_origin(model: PeftModel, origin: AdapterOrigin) -> None:
    """Keep how a model was made."""
    setattr(model, _ATTRIBUTE, origin)


def get_adapter_origin(model: Any) -> AdapterOrigin:
    """Look up how a model of a run was made; one that is trained whole overwrites its base."""
    if has_ailora_adapter(model):
        plan = get_plan(model)
        return AdapterOrigin(plan, plan.form is Form.RESIDUAL)
    return getattr(model, _ATTRIBUTE, AdapterOrigin(None, not isinstance(model, PeftModel)))
