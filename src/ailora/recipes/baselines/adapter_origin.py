"""What is known of how a run's model was made: kept with the model, for what comes after the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from ailora.lora import get_plan
from ailora.lora.inject import has_ailora_adapter
from ailora.plan import Form, Plan

_RECORD = "ailora_made"


@dataclass(frozen=True)
class Made:
    """How a model was made.

    Attributes:
        plan: which projections have an adapter; None: nobody knows, or there is none.
        overwritten: whether the weights under the adapter are not the base's any more.
    """

    plan: Plan | None
    overwritten: bool


def record(model: Any, made: Made) -> None:
    """Keep how a model was made."""
    setattr(model, _RECORD, made)


def made_of(model: Any) -> Made:
    """How a model of a run was made; one that is trained whole overwrites its base."""
    if has_ailora_adapter(model):
        plan = get_plan(model)
        return Made(plan, plan.form is Form.RESIDUAL)
    return getattr(model, _RECORD, Made(None, not isinstance(model, PeftModel)))
