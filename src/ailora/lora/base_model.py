"""Base models of adapters: look them up, and refuse merged or changed weights."""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from ailora.errors import ModelError
from ailora.plan.adapter_metadata import AdapterMetadata
from ailora.weights.base_weight import BaseWeight, matches_fingerprint


def get_base_model(model: nn.Module) -> nn.Module:
    """Return the base model of a `PeftModel`. Any other model is returned unchanged.

    Raises:
        ModelError: All adapters of the `PeftModel` were deleted.
    """
    if not isinstance(model, PeftModel):
        return model
    # PEFT's `get_base_model` would raise a KeyError, because it looks up the configuration of the active adapter.
    if not model.peft_config:
        raise ModelError("all adapters of the PeftModel were deleted: pass the base model, which its unload() returns")
    return model.get_base_model()


def has_merged_adapter(model: nn.Module) -> bool:
    """Return whether an adapter is merged into the base weights of a model."""
    return any(isinstance(module, LoraLayer) and module.merged for module in model.modules())


def validate_unmerged(model: nn.Module) -> None:
    """Refuse a model with an adapter merged into the base weights.

    Raises:
        ModelError: An adapter is merged.
    """
    if has_merged_adapter(model):
        raise ModelError("an adapter is merged into the base weights: call unmerge_adapter() first")


def find_changed_weight(weights: Mapping[str, BaseWeight], metadata: AdapterMetadata) -> str | None:
    """Find the first base weight that differs from its fingerprint in an adapter's metadata.

    Weights without a comparable fingerprint count as unchanged: those that the adapter does not adapt, quantized
    weights, and weights loaded in a coarser dtype than that of the plan. Each rank compares its own weights. If weights
    are sharded, all ranks must call this function, because gathering a weight is collective.

    Args:
        weights: Base weights by module name.
        metadata: Metadata of the adapter.

    Returns:
        Name of the module. None if no weight differs.

    Raises:
        ModelError: A weight is on the meta device.
    """
    planned = metadata.parsed_plan.modules

    def differs(module: str, weight: BaseWeight) -> bool:
        expected = metadata.fingerprints.get(module)
        if module not in planned or expected is None or weight.quantized_format is not None:
            return False
        weight.validate_loaded()
        return matches_fingerprint(weight.stored(), expected, planned[module][0].projection.dtype) is False

    return next((module for module, weight in weights.items() if differs(module, weight)), None)
