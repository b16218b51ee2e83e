"""Save adapters in every form as stock PEFT adapters with our metadata, and restore their base models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from ailora.adapter_io.adapter_digests import write_digests
from ailora.adapter_io.peft_config_file import WEIGHTS_NAME
from ailora.atomic_io import replacing_files
from ailora.distributed import is_main, process_count, raise_on_all_ranks
from ailora.errors import ModelError
from ailora.inits import Factors
from ailora.lora.adapt import get_plan
from ailora.lora.adapter_name import validate_existing_names
from ailora.lora.base_model import validate_unmerged
from ailora.lora.fused_factor import FusedFactor
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import get_metadata
from ailora.lora.lora_config import build_lora_config
from ailora.lora.packed_factor import PackedFactor
from ailora.lora.plain_factor import ResidualFactor
from ailora.lora.residual import restore_weights
from ailora.path_kind import expand_home
from ailora.plan.adapter_plan import Form, Plan
from ailora.roles import Role
from ailora.weights.base_weight import resolve_weights, select_rows
from ailora.weights.dtensor import any_dtensor, full_tensor

#: Longest time that a rank waits while other ranks write the same adapter, in seconds.
_RANK_TIMEOUT_S = 600.0


def save_adapter(model: PeftModel, folder: Path | str, *, adapter_name: str = "default") -> Path:
    """Save an adapter made by ailora as a stock PEFT adapter for the unchanged base, with `ailora.json`.

    The files are written beside the folder's files, and replace them when all are complete. The residual form is saved
    as the anchored form, whose factors `[dB, B]` and `[A0; dA]`, with `dA = A - A0` and `dB = B - B0`, have the product
    `B A - B0 A0`: the update of the unchanged base. For a model sharded by FSDP2, call this function on every rank;
    rank 0 writes. For any other model, such as a replica of DDP, call it on one rank. If several ranks call it, they
    write the same files one after the other.

    Args:
        model: Model returned by `adapt`, `apply_plan` or `resume`.
        folder: Folder to write, created if missing. Its other files stay.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Folder of the files: `folder` for the adapter name `default`, else a subfolder named after the adapter.

    Raises:
        InputError: The folder is a file, or another process is writing to the folder. With several ranks, this function
            first waits up to ten minutes for the other process, which may be another rank.
        ModelError: The model has no adapter of that name made by ailora, names of tensors contain the name of another
            adapter, or PEFT does not find the adapter because layers were renamed.

    Examples:
        >>> from ailora import adapt
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> folder = save_adapter(adapt(model, rank=4), "adapter")
        >>> sorted(file.name for file in folder.iterdir() if file.suffix != ".md")
        ['adapter_config.json', 'adapter_model.safetensors', 'ailora.json']
    """
    plan, base = get_plan(model, adapter_name), model.get_base_model()
    validate_existing_names(model)
    # Users may have set label names in the model's configuration after `adapt`.
    metadata = get_metadata(model, adapter_name).with_model_config(getattr(base, "config", None))
    folder = expand_home(folder)
    subfolder = "" if adapter_name == "default" else adapter_name
    sharded = any_dtensor(model.parameters())
    gathered = _gather_state_dict(model, adapter_name) if sharded else None
    anchored = _anchored_state_dict(model, plan, adapter_name) if plan.form is Form.RESIDUAL else None
    # For an unsharded model, it is unknown whether all ranks call this function or a single one. A single rank would
    # wait at a barrier forever, and its adapter would be lost if only rank 0 wrote. So every caller writes in turn.
    timeout_s = _RANK_TIMEOUT_S if process_count() > 1 else 0.0
    with raise_on_all_ranks() if sharded else nullcontext():
        if not sharded or is_main():
            with replacing_files(folder, timeout_s=timeout_s) as partial:
                if (card := folder / "README.md").is_file():
                    shutil.copyfile(card, partial / card.name)  # PEFT updates the user's model card
                model.save_pretrained(str(partial), selected_adapters=[adapter_name], state_dict=gathered)
                if anchored is not None:
                    _replace_by_anchored(partial / subfolder, anchored, build_lora_config(plan, base))
                metadata.write(partial / subfolder)
                # Write the digests last, because they cover all files written above.
                write_digests(partial / subfolder)
    return folder / subfolder


def restore_base(model: PeftModel, *, adapter_name: str = "default") -> nn.Module:
    """Remove all adapters, and return the base model with its own heads and weights.

    The anchored and the stock form never change the base weights. Weights changed by the residual form are restored as
    `W = W_res + s B0 A0`, up to rounding. Unlike PEFT's `unload`, which keeps the trained heads and embeddings of
    `modules_to_save`, this function puts the original modules back. All parameters stay frozen.

    Args:
        model: Model returned by `adapt`, `apply_plan` or `resume`.
        adapter_name: PEFT's name for an adapter made by ailora; in the residual form, the adapter that changed the
            weights.

    Returns:
        The base model.

    Raises:
        ModelError: The model has no adapter of that name made by ailora, an adapter is merged, or a base changed by the
            residual form is sharded over processes.

    Examples:
        >>> from ailora import adapt
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> restore_base(adapt(model, rank=4, form="residual")) is model
        True
    """
    plan = get_plan(model, adapter_name)
    base = model.get_base_model()
    # PEFT's `unload` would leave the product of a merged adapter in the base weights.
    validate_unmerged(base)
    if plan.form is Form.RESIDUAL:
        if any_dtensor(base.parameters()):
            raise ModelError(
                "the base model is sharded over processes, and its weights cannot be overwritten: load the model again"
            )
        restore_weights(resolve_weights(base, plan.modules), _read_anchors(base, plan, adapter_name))
    wrappers = {name: module for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    # Wrappers may contain wrappers. In reverse order, inner wrappers come first.
    for name, wrapper in reversed(wrappers.items()):
        base.set_submodule(name, wrapper.original_module)
    lora_model = model.base_model
    assert isinstance(lora_model, LoraModel)
    # The `unload` of `AnchoredLoraModel` refuses models in the residual form. Here, their weights have been restored.
    return LoraModel.unload(lora_model)


def _gather_state_dict(model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """Gather the state dict of an adapter whose model is sharded over processes.

    Returns:
        The adapter's entries of `model.state_dict()`, under the same names: `save_pretrained` selects and renames them.
    """
    state = model.state_dict()
    names = [*state]
    # Only PEFT knows which entries belong to an adapter, but PEFT renames them, and under tensor parallelism gathers
    # the whole model. Given indices in place of the entries, it returns the indices of the adapter's entries.
    indices = {name: torch.tensor(index) for index, name in enumerate(names)}
    selected = get_peft_model_state_dict(model, indices, adapter_name=adapter_name)
    if not selected:
        raise ModelError(
            "PEFT finds no adapter in the state dict: fsdp_config['activation_checkpointing'] has renamed the layers. "
            "Use the Trainer's argument activation_checkpointing instead. The trained weights are in the Trainer's "
            "checkpoints (pytorch_model_fsdp)"
        )
    selected_names = [names[int(index)] for index in selected.values()]
    return {name: full_tensor(state[name]) for name in selected_names}


def _anchored_state_dict(model: PeftModel, plan: Plan, adapter_name: str) -> dict[str, Tensor]:
    """Return the state dict of an adapter in the residual form, with its factors converted to the anchored form."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    # Keys of the state dict start with the layer's name in `model`; the plan has the name in the base model.
    layer_names = {layer: name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for module in plan.modules:
        layer = model.get_base_model().get_submodule(module)
        assert isinstance(layer, LoraLayer)
        for key, factors in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            factor = factors[adapter_name]
            if isinstance(factor, PackedFactor):
                state[f"{layer_names[layer]}.{key}.weight"] = factor.to_file()
    return {key: full_tensor(value).contiguous() for key, value in state.items()}


def _replace_by_anchored(folder: Path, state: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Replace PEFT's files of an adapter in the residual form, for `W_res`, by those of the anchored form, for `W`.

    Args:
        folder: Folder with the files that PEFT has written.
        state: State dict of the anchored form.
        config: Configuration of the anchored form, whose ranks are those of `state`.
    """
    written_config = LoraConfig.from_pretrained(str(folder))
    # The anchored form has rank 2r, and an alpha that keeps the scaling. Both forms share all other fields, such as the
    # base model and its class.
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern"):
        setattr(written_config, key, getattr(config, key))
    written_config.save_pretrained(str(folder), auto_mapping_dict=written_config.auto_mapping)
    # Modules in `modules_to_save` may share memory, which safetensors refuses.
    save_file({key: value.clone() for key, value in state.items()}, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def _read_anchors(base: nn.Module, plan: Plan, adapter_name: str) -> list[InitialFactors]:
    """Read the initial factors that an adapter in the residual form keeps as anchors."""
    anchors = []
    for planned in plan.adapters:
        projection = planned.projection
        layer = base.get_submodule(projection.module)
        assert isinstance(layer, LoraLayer)
        A, B = (_role_factor(factors[adapter_name], projection.role) for factors in (layer.lora_A, layer.lora_B))
        # Projections that start as plain LoRA have no anchor, and their weights have not changed.
        if isinstance(A, ResidualFactor) and isinstance(B, ResidualFactor):
            # With `couple_roles`, each B has all rows of the fused weight; those of other roles are zero in the anchor.
            B0 = select_rows(B.anchor, projection) if plan.couple_roles else B.anchor
            anchors.append(InitialFactors(planned, Factors(A.anchor, B0)))
    return anchors


def _role_factor(factor: nn.Module, role: Role) -> nn.Module:
    """Return the factor of a role: its part of a fused factor, or without fusion the factor itself."""
    return factor.parts[role.value] if isinstance(factor, FusedFactor) else factor
