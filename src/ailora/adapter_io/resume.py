"""Resume the training of a saved adapter, with the anchor from its file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.completeness import original_name, validate_saved_modules
from ailora.adapter_io.lora_weights import PREFIX
from ailora.adapter_io.peft_config_file import CONFIG_NAME
from ailora.adapter_io.projection_factors import ProjectionFactors
from ailora.distributed import is_main
from ailora.errors import AnchorMismatchError, InputError, ModelError
from ailora.inits import Factors
from ailora.lora.adapt import compute_shared_factors
from ailora.lora.base_model import find_changed_weight, get_base_model
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import inject, resolve_planned_weights
from ailora.lora.packed_factor import PackedFactor
from ailora.lora.residual import compute_residuals
from ailora.path_kind import expand_home
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.safetensors_io import read_tensor
from ailora.weights.base_weight import BaseWeight, select_rows, tensors_by_name
from ailora.weights.dtensor import any_dtensor, distribute_like
from ailora.weights.tied_weights import format_resize_hint


def resume(
    model: nn.Module, adapter: Path | str, *, adapter_name: str = "default", metadata: Path | str | None = None
) -> PeftModel:
    """Load a saved adapter into its base model for further training, with a frozen anchor.

    The anchor, the initial factors `A0` and `B0`, is read from the file, so no weight is decomposed. Only a Trainer's
    checkpoint in the residual form lacks the anchor. For such a checkpoint, the initial factors are computed again.

    Under torch.distributed, call this function on every rank. A single rank may call it alone if the base model is
    neither sharded nor adapted, and the file contains the anchor. Rank 0 compares the weights with the adapter's base.
    Other ranks do not, because they may not have read their weights; a launcher ends them if rank 0 fails.

    Args:
        model: Base model of the adapter.
        adapter: Folder written by `ailora init` or `save_adapter`, a Trainer's checkpoint, or a run's folder.
        adapter_name: PEFT's name for the adapter.
        metadata: The adapter's `ailora.json`, or a folder with this file. None takes the file from `adapter` or its
            parent folders.

    Returns:
        The adapted model.

    Raises:
        InputError: The folder holds no valid adapter, or its metadata are missing or belong to a different adapter.
        ModelError: The model is not the base of the adapter, or lacks a parameter that the file holds.
        AnchorMismatchError: Training without ailora has changed the anchor.

    Examples:
        >>> import copy
        >>> from ailora import adapt, get_plan, save_adapter
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> adapted = adapt(copy.deepcopy(model), rank=4)
        >>> folder = save_adapter(adapted, "adapter")
        >>> get_plan(resume(model, folder)) == get_plan(adapted)
        True
    """
    checkpoint = AdapterCheckpoint.open(adapter)
    adapter_metadata = checkpoint.metadata if metadata is None else AdapterMetadata.read(_metadata_file(metadata))
    plan = _validate_resumable(checkpoint, adapter_metadata)
    assert adapter_metadata is not None
    checkpoint.validate_finite()
    validate_saved_modules(checkpoint, get_base_model(model))
    _validate_saved_shapes(model, checkpoint)
    weights = resolve_planned_weights(model, plan, adapter_name=adapter_name)
    _validate_same_base(plan, weights, adapter_metadata, base=get_base_model(model))
    if checkpoint.contains_anchor(plan):
        factors = [
            _initial_factors(stored, plan, checkpoint.folder) for stored in checkpoint.read_projection_factors(plan)
        ]
    else:
        factors = compute_shared_factors(plan, weights)
    return inject(
        model,
        plan,
        factors,
        adapter_name=adapter_name,
        metadata=adapter_metadata,
        residuals=compute_residuals(weights, factors) if plan.form is Form.RESIDUAL else [],
        load=lambda adapted, undo: _load_tensors(adapted, checkpoint, plan, adapter_name, undo=undo),
    )


def _validate_resumable(checkpoint: AdapterCheckpoint, metadata: AdapterMetadata | None) -> Plan:
    """Refuse an adapter without metadata, an export, and contradictory files.

    Returns:
        Plan of the adapter.

    Raises:
        InputError: The adapter cannot be resumed. The message names the alternative.
    """
    peft_hint = "continue without an anchor: PeftModel.from_pretrained(model, folder, is_trainable=True)"
    if metadata is None:
        raise InputError(
            f"found no {METADATA_NAME} for the adapter in {checkpoint.folder} or its parent folders: pass the file "
            f"(metadata=...), or {peft_hint}"
        )
    if metadata.exported is not None:
        raise InputError(
            f"{checkpoint.folder} is an export and does not contain the anchor: resume the original adapter, or "
            f"{peft_hint}"
        )
    if reason := checkpoint.find_mismatch(metadata):
        raise InputError(f"the {METADATA_NAME} does not belong to the adapter in {checkpoint.folder}: {reason}")
    plan = metadata.parsed_plan
    # PEFT adds heads to `modules_to_save` in its configuration, so only a name missing there is a contradiction.
    if missing_names := {*plan.options.modules_to_save} - {*checkpoint.modules_to_save}:
        raise InputError(
            f"{checkpoint.folder}: {METADATA_NAME} lists {min(missing_names)!r} in modules_to_save, but {CONFIG_NAME} "
            "does not: one of the files was edited, or belongs to a different adapter"
        )
    if checkpoint.dora != plan.options.dora:
        raise InputError(
            f"{checkpoint.folder}: use_dora is {checkpoint.dora} in {CONFIG_NAME}, but dora is {plan.options.dora} in "
            f"{METADATA_NAME}: one of the files was edited, or belongs to a different adapter"
        )
    if mismatch := checkpoint.find_scaling_mismatch(plan):
        module, scaling, planned_scaling = mismatch
        raise InputError(
            f"{checkpoint.folder}: adapter_config.json gives {module} the scaling {scaling:g}, but {METADATA_NAME} "
            f"gives {planned_scaling:g}: one of the files was edited, or belongs to a different adapter"
        )
    return plan


def _initial_factors(stored: ProjectionFactors, plan: Plan, folder: Path) -> InitialFactors:
    if plan.form is Form.ANCHORED and stored.anchor_was_trained:
        raise AnchorMismatchError(
            f"{stored.planned.projection.name}: training without ailora has changed the anchor in {folder}. Continue "
            "without an anchor: PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    # Factors without an anchor start where their training ended.
    if not stored.has_anchor:
        return InitialFactors(stored.planned, Factors(stored.A, stored.B))
    A, B = stored.anchor
    # With coupled roles, the stored `B0` has all rows of the fused weight, but only the rows of this role are nonzero.
    if stored.covers_all_rows:
        B = select_rows(B, stored.planned.projection)
    return InitialFactors(stored.planned, Factors(A.contiguous(), B.contiguous()))


def _load_tensors(
    model: PeftModel, checkpoint: AdapterCheckpoint, plan: Plan, adapter_name: str, *, undo: ExitStack
) -> None:
    """Copy the tensors of a saved adapter into the injected adapter, which has the same modules.

    Before tensors of the base model itself are overwritten, callbacks that restore them are registered with `undo`.

    Raises:
        ModelError: The model has no place for a tensor of the file. No tensor is copied then.
    """
    # PEFT's `set_peft_model_state_dict` first renames tensors as transformers does for old checkpoints. In some models,
    # this also renames current modules (MaskFormer's Swin backbone), and PEFT silently drops their tensors.
    base = model.get_base_model()
    state = _read_factors(base, checkpoint, plan, adapter_name)
    wrapped_names = _map_saved_names(base, adapter_name)
    # PEFT saves a resized vocabulary without `modules_to_save`: such a tensor belongs to the base model.
    state |= {PREFIX + wrapped_names.get(name, name): read_tensor(stored) for name, stored in checkpoint.saved.items()}
    tensors = tensors_by_name(model)
    packed_names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, PackedFactor)}
    if unexpected := sorted(state.keys() - tensors.keys() - packed_names):
        raise ModelError(
            f"the {type(base).__name__} has no place for {unexpected[0].removeprefix(PREFIX)} of {checkpoint.folder}: "
            "resume the adapter in a freshly loaded base model"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # Distributing is collective, so all processes must keep the same order. A packed factor, which is no parameter,
    # takes a plain tensor.
    for name, tensor in state.items():
        if name in parameters:
            state[name] = distribute_like(tensor, parameters[name])
    for name in checkpoint.saved.keys() - wrapped_names.keys():
        base_tensor = tensors[PREFIX + name].detach()
        undo.callback(base_tensor.copy_, base_tensor.clone())
    model.load_state_dict(state, strict=False)


def _read_factors(base: nn.Module, checkpoint: AdapterCheckpoint, plan: Plan, adapter_name: str) -> dict[str, Tensor]:
    """Read the factors and magnitudes of a file, by their names in a model with the adapter."""
    state = {}
    # The file holds the stacks `[A0; dA]` and `[dB, B]`, but the residual form trains `A = A0 + dA` and `B`.
    needs_conversion = plan.form is Form.RESIDUAL and checkpoint.contains_anchor(plan)
    for module, weights in checkpoint.modules.items():
        layer = base.get_submodule(module)
        assert isinstance(layer, LoraLayer)
        parts = {"lora_A": weights.A, "lora_B": weights.B, "lora_magnitude_vector": weights.magnitude}
        for part, stored in parts.items():
            if stored is None:
                continue
            tensor, factor = read_tensor(stored), getattr(layer, part)[adapter_name]
            if needs_conversion and isinstance(factor, PackedFactor):
                tensor = factor.from_file(tensor)
            state[f"{PREFIX}{module}.{part}.{adapter_name}.weight"] = tensor
    return state


def _map_saved_names(base: nn.Module, adapter_name: str) -> dict[str, str]:
    """Map the names of tensors of `modules_to_save` in a file to their names in a base model with the adapter."""
    return {
        f"{original_name(name)}.{key}": f"{name}.modules_to_save.{adapter_name}.{key}"
        for name, wrapper in base.named_modules(remove_duplicate=False)
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save
        for key in wrapper.modules_to_save[adapter_name].state_dict()
    }


def _metadata_file(path: Path | str) -> Path:
    if not isinstance(path, str | Path):
        raise InputError(f"metadata must be the path of an {METADATA_NAME} or a folder with this file, got {path!r}")
    path = expand_home(path)
    return path if path.is_file() else path / METADATA_NAME


def _validate_saved_shapes(model: nn.Module, checkpoint: AdapterCheckpoint) -> None:
    """Refuse tensors of `modules_to_save` if the model has no parameter of their name and shape."""
    base = get_base_model(model)
    tensors = {original_name(name): tensor for name, tensor in tensors_by_name(base).items()}
    for name, stored in checkpoint.saved.items():
        module = name.rpartition(".")[0]
        present = tensors.get(name)
        if present is None or tuple(present.shape) != stored.shape:
            problem = "has no such parameter" if present is None else f"has a parameter of shape {tuple(present.shape)}"
            hint = "" if present is None else format_resize_hint(base, module, present.shape, stored.shape)
            raise ModelError(f"{stored}: the {type(base).__name__} {problem}{hint}")


def _validate_same_base(
    plan: Plan, weights: Mapping[str, BaseWeight], metadata: AdapterMetadata, *, base: nn.Module
) -> None:
    """Refuse a model if its weights differ from the adapter's base in shape, or by more than a conversion of dtype.

    Ranks other than 0 compare only shapes, unless the model is sharded.
    """
    for module, weight in weights.items():
        planned_shape = plan.modules[module][0].projection.shape
        if weight.shape != planned_shape:
            hint = format_resize_hint(base, module, weight.shape, planned_shape)
            raise ModelError(
                f"{module} has the shape {weight.shape}, but the adapter was made for {planned_shape}{hint}"
            )
    # Other ranks may not have read their weights. The result is not broadcast, because a single rank may call `resume`;
    # a launcher ends the other ranks if rank 0 fails. Sharded weights were read, and gathering them needs every rank.
    if not is_main() and not any_dtensor(base.parameters()):
        return
    if module := find_changed_weight(weights, metadata):
        raise ModelError(
            f"{module}: the weight differs from the adapter's base ({metadata.base_model}). Load that base model; "
            "`ailora verify` shows details"
        )
