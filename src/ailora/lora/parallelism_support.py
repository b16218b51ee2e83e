"""Engines that have taken a base model apart before it is adapted: what works there, and what is refused by name."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ailora.errors import ModelError
from ailora.plan.adapter_plan import Form, Plan
from ailora.weights.base_weight import base_layer
from ailora.weights.dtensor import any_dtensor


def validate_parallelism(base: nn.Module, plan: Plan) -> None:
    """Refuse weights that an engine has partitioned in a way in which the planned form does not work.

    Raises:
        ModelError: ZeRO-3; tensor parallelism or FSDP2 in a form that does not work there.
    """
    layers = {module: base_layer(base, module) for module in plan.modules}
    for module, layer in layers.items():
        if any(hasattr(parameter, "ds_id") for parameter in layer.parameters(recurse=False)):
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
    spread = [module for module, layer in layers.items() if any_dtensor(layer.parameters(recurse=False))]
    if not spread:
        return
    if plan.form is Form.RESIDUAL:
        raise ModelError(f"{spread[0]}: its weight is spread over processes and cannot be overwritten: form='anchored'")
    if _tensor_parallel(base) and (plan.form is not Form.STOCK or _fused(plan)):
        raise ModelError(
            f"{spread[0]}: its weight is split by tensor parallelism, for which PEFT changes the factors that the "
            f"{plan.form.value} form replaces: use form='stock', which is the same file, trained whole"
        )


def _fused(plan: Plan) -> bool:
    return any(planned.projection.fused for planned in plan.adapters)


def _tensor_parallel(base: nn.Module) -> bool:
    """Whether DTensors among the weights come, some or all, from tensor parallelism."""
    sharded_by_fsdp = any(isinstance(module, FSDPModule) for module in base.modules())
    return not sharded_by_fsdp or (getattr(base, "tp_size", None) or 1) > 1
