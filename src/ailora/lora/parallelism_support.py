"""Validate plans for base models already partitioned by an engine: ZeRO-3, tensor parallelism, FSDP2."""

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
    """Refuse a plan whose form does not work with the partitioning of the weights.

    Raises:
        ModelError: ZeRO-3 has partitioned the weights, or tensor parallelism or FSDP2 does not support the form.
    """
    for module, weight in weights.items():
        if any(hasattr(parameter, "ds_id") for parameter in weight.layer.parameters(recurse=False)):
            raise ModelError(
                f"{module}: the weight is partitioned by DeepSpeed ZeRO-3 and cannot be decomposed. Write the "
                "initial adapter with `ailora init`, and load it for training: PeftModel.from_pretrained(model, "
                "folder, is_trainable=True)"
            )
    if is_deepspeed_zero3_enabled() and plan.form is not Form.STOCK:
        raise ModelError(
            "DeepSpeed ZeRO-3 partitions the parameters of an adapter, and saves them without the anchor: use "
            "form='stock', which trains the factors of the file directly, or use ZeRO-2, DDP or FSDP2"
        )
    sharded = [module for module, weight in weights.items() if any_dtensor(weight.layer.parameters(recurse=False))]
    if not sharded:
        return
    if plan.form is Form.RESIDUAL:
        raise ModelError(
            f"{sharded[0]}: the weight is sharded over processes and cannot be overwritten: use form='anchored'"
        )
    if not _is_tensor_parallel(base):
        return
    if fused := [planned.projection.module for planned in plan.adapters if planned.projection.fused]:
        raise ModelError(
            f"{fused[0]}: adapters of a fused weight do not work with tensor parallelism: use DDP or FSDP2, or adapt "
            "other roles"
        )
    if plan.form is not Form.STOCK:
        raise ModelError(
            f"{sharded[0]}: the weight is split by tensor parallelism. PEFT then shards the LoRA factors, but "
            f"the {plan.form.value} form would replace them: use form='stock', which trains the saved factors directly"
        )


def _is_tensor_parallel(base: nn.Module) -> bool:
    """Return whether some DTensors of a model come from tensor parallelism, not from FSDP2.

    The model must have DTensors.
    """
    sharded_by_fsdp = any(isinstance(module, FSDPModule) for module in base.modules())
    return not sharded_by_fsdp or (getattr(base, "tp_size", None) or 1) > 1
