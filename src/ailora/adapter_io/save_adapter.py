"""Adapter folders: the stock files, the same for every form, and our sidecar beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from ailora.adapter_io.peft_config_file import WEIGHTS_NAME
from ailora.errors import ModelError
from ailora.lora.adapt import get_plan
from ailora.lora.fused_factor import FusedA, FusedB, FusedFactor, PlainFactor
from ailora.lora.inject import get_metadata, validate_unmerged
from ailora.lora.lora_config import lora_config
from ailora.plan.adapter_plan import Form, Plan
from ailora.roles import Projection
from ailora.roles.fused_layout import Rows
from ailora.weights.base_weight import base_layer, read_weight, select_rows, weight_key, write_rows
from ailora.weights.dtensor import any_dtensor, full_tensor


def save_adapter(model: PeftModel, folder: Path | str, *, adapter_name: str = "default") -> Path:
    """Write an adapter of ours as a stock PEFT adapter for the untouched base, with its `ailora.json`.

    The anchored and the stock form are written by `save_pretrained`. An adapter in the residual form is converted:
    with `dA = A - A0`, `dB = B - B0`, its update is `[dB, B] [A0; dA]` as in the other forms. Of a model that FSDP2
    has sharded, all processes call this; the first one writes.

    Args:
        model: a model that `adapt` or `apply_plan` made.
        folder: where the files go; made if needed.
        adapter_name: which adapter.

    Returns:
        The folder that holds the files: PEFT puts an adapter that is not named `default` in a subfolder.

    Raises:
        ModelError: the model has no such adapter of ours, or its layers were renamed so that PEFT does not find it.
    """
    plan, sidecar = get_plan(model, adapter_name), get_metadata(model, adapter_name)
    folder = Path(folder)
    target = folder if adapter_name == "default" else folder / adapter_name
    sharded = any_dtensor(model.parameters())
    state = _whole_state_dict(model, adapter_name) if sharded else None
    stacked = _stacked_state_dict(model, plan, adapter_name) if plan.form is Form.RESIDUAL else None
    if not sharded or dist.get_rank() == 0:
        model.save_pretrained(str(folder), selected_adapters=[adapter_name], state_dict=state)
        if stacked is not None:
            config = lora_config(plan, model.get_base_model())
            config.base_model_name_or_path = model.peft_config[adapter_name].base_model_name_or_path
            config.inference_mode = True
            config.save_pretrained(str(target))
            save_file(stacked, target / WEIGHTS_NAME, metadata={"format": "pt"})
        sidecar.write(target)
    if sharded:
        dist.barrier()
    return target


def restore_base(model: PeftModel, *, adapter_name: str = "default") -> nn.Module:
    """Unload an adapter in the residual form and give its part back to the base: `W = W_res + s B0 A0`.

    Equal to the original to rounding. In the other forms the base never changed, and this is `unload()`.

    Raises:
        ModelError: the model has no such adapter of ours, it is merged, spread over processes, or quantized, which
            rounding has changed for good.
    """
    plan = get_plan(model, adapter_name)
    base = model.get_base_model()
    if plan.form is not Form.RESIDUAL:
        return model.unload()
    validate_unmerged(base)
    if any_dtensor(base.parameters()):
        raise ModelError("the base is spread over processes, and its weights cannot be overwritten: load it again")
    if get_metadata(model, adapter_name).quantization_errors:
        raise ModelError("the residual was quantized, so that the base cannot be restored from it: load the base again")
    restored: set[tuple[int, Rows]] = set()
    with torch.no_grad():
        for planned in plan.adapters:
            projection = planned.projection
            layer: Any = base.get_submodule(projection.module)
            A, B = (_anchor(_part(half[adapter_name], projection)) for half in (layer.lora_A, layer.lora_B))
            inner = base_layer(base, projection.module)
            weight = read_weight(inner, projection.module)
            # Tied layers share one weight, from which one part was subtracted.
            key = (weight_key(inner), projection.rows)
            if A is not None and B is not None and key not in restored:
                restored.add(key)
                rows = select_rows(weight, projection)
                part = (
                    select_rows(planned.scaling * (B @ A), projection)
                    if plan.couple_roles
                    else planned.scaling * (B @ A)
                )
                write_rows(weight, projection, (rows.to(A.dtype) + part).to(rows.dtype))
    return model.unload()


def _whole_state_dict(model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """The entries of a sharded model's state dict that the file of an adapter takes, gathered."""
    state = model.state_dict()
    names = [*state]
    # PEFT says which ones, under other names: it is given their numbers instead of them.
    numbers = {name: torch.tensor(number) for number, name in enumerate(names)}
    filed = get_peft_model_state_dict(model, numbers, adapter_name=adapter_name)
    if not filed:
        raise ModelError(
            "PEFT finds no adapter in the state dict: fsdp_config['activation_checkpointing'] has renamed the layers. "
            "Use the argument gradient_checkpointing of the Trainer. What was trained is in its checkpoints "
            "(pytorch_model_fsdp)"
        )
    taken = [names[int(number)] for number in filed.values()]
    return {name: full_tensor(state[name]) for name in taken}


def _stacked_state_dict(model: PeftModel, plan: Plan, adapter_name: str) -> dict[str, torch.Tensor]:
    """The state dict of a residual-form adapter, its factors replaced by those of the file."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for module, group in plan.modules.items():
        layer: Any = model.get_base_model().get_submodule(module)
        parts_A, parts_B = {}, {}
        for planned in group:
            A, B = (_part(half[adapter_name], planned.projection) for half in (layer.lora_A, layer.lora_B))
            parts_A[planned.projection.role] = PlainFactor(_filed_A(A))
            parts_B[planned.projection.role] = PlainFactor(_filed_B(B))
        rows = {planned.projection.role: plan.trained_rows(planned.projection) for planned in group}
        state[f"{names[layer]}.lora_A.weight"] = FusedA(parts_A).stack().detach()
        state[f"{names[layer]}.lora_B.weight"] = FusedB(parts_B, rows, group[0].projection.shape[0]).stack().detach()
    return {key: full_tensor(value).contiguous() for key, value in state.items()}


def _part(factor: nn.Module, projection: Projection) -> nn.Module:
    """The factor of one role of a fused projection; the factor itself where there is one role only."""
    return factor.parts[projection.role.value] if isinstance(factor, FusedFactor) else factor


def _anchor(factor: nn.Module) -> torch.Tensor | None:
    """The start that was subtracted from the weight; None where nothing was (plain LoRA)."""
    return getattr(factor, "anchor", None)


def _weight(factor: nn.Module) -> torch.Tensor:
    weight = factor.stack() if isinstance(factor, PlainFactor) else factor.weight
    assert isinstance(weight, torch.Tensor)
    return full_tensor(weight.detach())


def _filed_A(factor: nn.Module) -> torch.Tensor:
    A, anchor = _weight(factor), _anchor(factor)
    return A if anchor is None else torch.cat([anchor, A - anchor], dim=0)


def _filed_B(factor: nn.Module) -> torch.Tensor:
    B, anchor = _weight(factor), _anchor(factor)
    return B if anchor is None else torch.cat([B - anchor, B], dim=1)
