"""Validate plans for base models that an engine has partitioned before they are adapted."""

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
    """Refuse a plan with a form that does not work on partitioned weights.

    Raises:
        ModelError: The weights are partitioned by ZeRO-3, or by tensor parallelism or FSDP2 with an unsupported form.
    """
    for module, weight in weights.items():
        if any(hasattr(parameter, "ds_id") for parameter in weight.layer.parameters(recurse=False)):
            raise ModelError(
                f"{module}: the weight is partitioned by ZeRO-3 of DeepSpeed and cannot be decomposed here. Make the "
                "adapter with `ailora init`, and train its file: PeftModel.from_pretrained(model, folder, "
                "is_trainable=True)"
            )
    if is_deepspeed_zero3_enabled() and plan.form is not Form.STOCK:
        raise ModelError(
            "ZeRO-3 of DeepSpeed partitions the parameters of an adapter, and writes them without their anchor: use "
            "form='stock', which trains the factors of the file directly, or use ZeRO-2, DDP or FSDP2"
        )
    sharded = [module for module, weight in weights.items() if any_dtensor(weight.layer.parameters(recurse=False))]
    if not sharded:
        return
    if plan.form is Form.RESIDUAL:
        raise ModelError(
            f"{sharded[0]}: the weight is sharded over processes and cannot be overwritten: use form='anchored'"
        )
    fused = any(planned.projection.fused for planned in plan.adapters)
    if _is_tensor_parallel(base) and (plan.form is not Form.STOCK or fused):
        raise ModelError(
            f"{sharded[0]}: the weight is split by tensor parallelism, for which PEFT changes the factors that the "
            f"{plan.form.value} form replaces: use form='stock', which trains the factors of the file directly"
        )


def _is_tensor_parallel(base: nn.Module) -> bool:
    """Return whether tensor parallelism has made some of a model's DTensors."""
    sharded_by_fsdp = any(isinstance(module, FSDPModule) for module in base.modules())
    return not sharded_by_fsdp or (getattr(base, "tp_size", None) or 1) > 1
