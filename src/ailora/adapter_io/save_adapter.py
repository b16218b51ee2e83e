"""Save adapters in every form as stock PEFT adapters with our metadata, and restore their base models."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ailora.adapter_io.adapter_digests import write_digests
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME
from ailora.atomic_io import grant_umask
from ailora.distributed import is_main, wait_for_everyone
from ailora.errors import ModelError
from ailora.inits import Factors
from ailora.lora.adapt import get_plan
from ailora.lora.fused_factor import FusedFactor
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import get_metadata, validate_unmerged
from ailora.lora.lora_config import build_lora_config
from ailora.lora.packed_factor import PackedFactor
from ailora.lora.plain_factor import ResidualFactor
from ailora.lora.residual import restore_weights
from ailora.path_kind import expand_home
from ailora.plan.adapter_plan import Form, Plan
from ailora.roles import Role
from ailora.weights.base_weight import resolve_weights, select_rows
from ailora.weights.dtensor import any_dtensor, full_tensor


def save_adapter(model: PeftModel, folder: Path | str, *, adapter_name: str = "default") -> Path:
    """Save an adapter made by ailora as a stock PEFT adapter for the untouched base, with `ailora.json`.

    The residual form is saved as the anchored form, `[dB, B] [A0; dA]` with `dA = A - A0`, `dB = B - B0`. For a model
    sharded by FSDP2, call this function in every process; the main process writes.

    Args:
        model: Model returned by `adapt` or `apply_plan`.
        folder: Folder to write, created if missing.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Folder of the files: `folder` for the adapter name `default`, else a subfolder named after the adapter.

    Raises:
        ModelError: The model has no adapter of that name made by ailora, or PEFT does not find the adapter because
            layers were renamed.

    Examples:
        >>> from ailora import adapt
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> folder = save_adapter(adapt(model, rank=4), "adapter")
        >>> sorted(file.name for file in folder.iterdir() if file.suffix != ".md")
        ['adapter_config.json', 'adapter_model.safetensors', 'ailora.json']
    """
    plan, metadata = get_plan(model, adapter_name), get_metadata(model, adapter_name)
    folder = expand_home(folder)
    target = folder if adapter_name == "default" else folder / adapter_name
    sharded = any_dtensor(model.parameters())
    state = _gather_state_dict(model, adapter_name) if sharded else None
    file_state = _file_state_dict(model, plan, adapter_name) if plan.form is Form.RESIDUAL else None
    if not sharded or is_main():
        model.save_pretrained(str(folder), selected_adapters=[adapter_name], state_dict=state)
        if file_state is not None:
            config = build_lora_config(plan, model.get_base_model())
            config.base_model_name_or_path = model.peft_config[adapter_name].base_model_name_or_path
            config.inference_mode = True
            config.save_pretrained(str(target))
            save_file(file_state, target / WEIGHTS_NAME, metadata={"format": "pt"})
        metadata.write(target)
        # Write the digests last, because they cover all files written above.
        write_digests(target)
        grant_umask(target / name for name in (WEIGHTS_NAME, CONFIG_NAME))
    if sharded:
        wait_for_everyone()
    return target


def restore_base(model: PeftModel, *, adapter_name: str = "default") -> nn.Module:
    """Unload an adapter, and restore the base weights of the residual form, `W = W_res + s B0 A0`.

    Restored weights equal the original weights up to rounding. The anchored and the stock form never change the base.

    Args:
        model: Model returned by `adapt` or `apply_plan`.
        adapter_name: PEFT's name for the adapter.

    Returns:
        The base model.

    Raises:
        ModelError: The model has no adapter of that name made by ailora, or the adapter is merged or sharded over
            processes.

    Examples:
        >>> from ailora import adapt
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> restore_base(adapt(model, rank=4, form="residual")) is model
        True
    """
    plan = get_plan(model, adapter_name)
    base = model.get_base_model()
    if plan.form is Form.RESIDUAL:
        validate_unmerged(base)
        if any_dtensor(base.parameters()):
            raise ModelError(
                "the base model is sharded over processes, and its weights cannot be overwritten: load the model again"
            )
        restore_weights(resolve_weights(base, plan.modules), _read_anchors(base, plan, adapter_name))
    return model.unload()


def _gather_state_dict(model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """Gather the state dict of an adapter whose model is sharded over processes."""
    state = model.state_dict()
    names = [*state]
    # PEFT selects and renames the entries. With indices in place of the shards, PEFT moves no weights, and the indices
    # in its result identify the entries to gather.
    indices = {name: torch.tensor(index) for index, name in enumerate(names)}
    selected = get_peft_model_state_dict(model, indices, adapter_name=adapter_name)
    if not selected:
        raise ModelError(
            "PEFT finds no adapter in the state dict: fsdp_config['activation_checkpointing'] has renamed the layers. "
            "Use the Trainer's argument gradient_checkpointing instead. The trained weights are in the Trainer's "
            "checkpoints (pytorch_model_fsdp)"
        )
    return {names[int(index)]: full_tensor(state[names[int(index)]]) for index in selected.values()}


def _file_state_dict(model: PeftModel, plan: Plan, adapter_name: str) -> dict[str, Tensor]:
    """Return the state dict of an adapter in the residual form, with factors converted for the file."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for module in plan.modules:
        layer = model.get_base_model().get_submodule(module)
        assert isinstance(layer, LoraLayer)
        for key, factors in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            factor = factors[adapter_name]
            if isinstance(factor, PackedFactor):
                state[f"{names[layer]}.{key}.weight"] = factor.to_file()
    return {key: full_tensor(value).contiguous() for key, value in state.items()}


def _read_anchors(base: nn.Module, plan: Plan, adapter_name: str) -> list[InitialFactors]:
    """Read the initial factors of an adapter in the residual form from the anchors in the model."""
    anchors = []
    for planned in plan.adapters:
        projection = planned.projection
        layer = base.get_submodule(projection.module)
        assert isinstance(layer, LoraLayer)
        A, B = (_role_factor(factors[adapter_name], projection.role) for factors in (layer.lora_A, layer.lora_B))
        if isinstance(A, ResidualFactor) and isinstance(B, ResidualFactor):
            B0 = select_rows(B.anchor, projection) if plan.couple_roles else B.anchor
            anchors.append(InitialFactors(planned, Factors(A.anchor, B0)))
    return anchors


def _role_factor(factor: nn.Module, role: Role) -> nn.Module:
    """Return the factor of a role: its part of a fused factor, or without fusion the factor itself."""
    return factor.parts[role.value] if isinstance(factor, FusedFactor) else factor
