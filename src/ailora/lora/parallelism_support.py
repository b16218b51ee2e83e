"""Support of the forms under ZeRO, FSDP2 and tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ailora.errors import ModelError
from ailora.plan.adapter_plan import Form, Plan
from ailora.weights.base_weight import BaseWeight
from ailora.weights.dtensor import any_dtensor


def validate_parallelism(base: nn.Module, plan: Plan, weights: Mapping[str, BaseWeight]) -> None:
    """Refuse partitioned weights under which the planned form does not work.

    Raises:
        ModelError: ZeRO-3 holds a weight, or tensor parallelism or FSDP2 does not work with the form.
    """
    for module, weight in weights.items():
        if any(hasattr(parameter, "ds_id") for parameter in weight.layer.parameters(recurse=False)):
            raise ModelError(
                f"{module}: its weight is partitioned by ZeRO-3 of DeepSpeed and cannot be decomposed here. Make the "
                "adapter with `ailora init`, and train its file: PeftModel.from_pretrained(model, folder, "
                "is_trainable=True)"
            )
    if is_deepspeed_zero3_enabled() and plan.form is not Form.STOCK:
        raise ModelError(
            "ZeRO-3 of DeepSpeed partitions the parameters of an adapter, and writes them without their anchor: use "
            "form='stock', which is the same file, trained whole; or ZeRO-2, DDP or FSDP2"
        )
    sharded = [module for module, weight in weights.items() if any_dtensor(weight.layer.parameters(recurse=False))]
    if not sharded:
        return
    if plan.form is Form.RESIDUAL:
        raise ModelError(
            f"{sharded[0]}: its weight is spread over processes and cannot be overwritten: form='anchored'"
        )
    fused = any(planned.projection.fused for planned in plan.adapters)
    if _is_tensor_parallel(base) and (plan.form is not Form.STOCK or fused):
        raise ModelError(
            f"{sharded[0]}: its weight is split by tensor parallelism, for which PEFT changes the factors that the "
            f"{plan.form.value} form replaces: use form='stock', which is the same file, trained whole"
        )


def _is_tensor_parallel(base: nn.Module) -> bool:
    """Return whether any DTensor of the weights comes from tensor parallelism."""
    sharded_by_fsdp = any(isinstance(module, FSDPModule) for module in base.modules())
    return not sharded_by_fsdp or (getattr(base, "tp_size", None) or 1) > 1
