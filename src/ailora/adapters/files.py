"""Adapter folders: the stock files, the same for every form, and our sidecar beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from ailora.adapters.apply import plan_of, sidecar_of
from ailora.adapters.lora_config import lora_config
from ailora.adapters.plan import Form
from ailora.inits import Factors

_WEIGHTS = "adapter_model.safetensors"


def save_adapter(model: PeftModel, folder: Path | str, *, adapter_name: str = "default") -> Path:
    """Write an adapter of ours as a stock PEFT adapter for the untouched base, with its `ailora.json`.

    The anchored and the stock form are written by `save_pretrained`. An adapter in the residual form is converted:
    with `dA = A - A0`, `dB = B - B0`, its update is `[dB, B] [A0; dA]` as in the other forms.

    Args:
        model: a model that `adapt` or `apply_plan` made.
        folder: where the files go; made if needed.
        adapter_name: which adapter.

    Returns:
        The folder that holds the files: PEFT puts an adapter that is not named `default` in a subfolder.

    Raises:
        ModelError: the model has no such adapter of ours.
    """
    plan, sidecar = plan_of(model, adapter_name), sidecar_of(model, adapter_name)
    folder = Path(folder)
    target = folder if adapter_name == "default" else folder / adapter_name
    model.save_pretrained(str(folder), selected_adapters=[adapter_name])
    if plan.form is Form.RESIDUAL:
        config = lora_config(plan, model.get_base_model())
        config.base_model_name_or_path = model.peft_config[adapter_name].base_model_name_or_path
        config.inference_mode = True
        config.save_pretrained(str(target))
        save_file(_stacked_state_dict(model, adapter_name), target / _WEIGHTS, metadata={"format": "pt"})
    sidecar.write(target)
    return target


def restore_base(model: PeftModel, *, adapter_name: str = "default") -> nn.Module:
    """Unload an adapter in the residual form and give its part back to the base: `W = W_res + s B0 A0`.

    Equal to the original to rounding. In the other forms the base never changed and `unload()` does it.

    Raises:
        ModelError: the model has no such adapter of ours.
    """
    plan_of(model, adapter_name)
    restored: set[int] = set()
    with torch.no_grad():
        for layer in _lora_layers(model).values():
            anchor = _residual_anchor(layer, adapter_name)
            weight = layer.get_base_layer().weight
            # Tied layers share one weight, from which one part was subtracted.
            if anchor is not None and id(weight) not in restored:
                restored.add(id(weight))
                weight.copy_(weight.to(anchor.A.dtype) + layer.scaling[adapter_name] * (anchor.B @ anchor.A))
    return model.unload()


def _stacked_state_dict(model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """The state dict of a residual-form adapter, its factors replaced by those of the file."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    for name, layer in _lora_layers(model).items():
        anchor = _residual_anchor(layer, adapter_name)
        if anchor is not None:
            A, B = layer.lora_A[adapter_name].weight.detach(), layer.lora_B[adapter_name].weight.detach()
            state[f"{name}.lora_A.weight"] = torch.cat([anchor.A, A - anchor.A], dim=0)
            state[f"{name}.lora_B.weight"] = torch.cat([B - anchor.B, B], dim=1)
    return {key: value.contiguous() for key, value in state.items()}


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _residual_anchor(layer: Any, adapter_name: str) -> Factors | None:
    """The `A0, B0` that were subtracted from a layer's weight; None where nothing was (plain LoRA, other adapters)."""
    if adapter_name not in layer.lora_A or not hasattr(layer.lora_A[adapter_name], "anchor"):
        return None
    return Factors(A=layer.lora_A[adapter_name].anchor, B=layer.lora_B[adapter_name].anchor)
