"""Resume the training of a saved adapter, with the anchor from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.completeness import validate_saved_modules
from ailora.adapter_io.lora_weights import add_prefix
from ailora.adapter_io.projection_factors import ProjectionFactors
from ailora.errors import AnchorMismatchError, InputError, ModelError
from ailora.inits import Factors
from ailora.lora.adapt import apply_plan
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import get_base_model, inject, resolve_planned_weights
from ailora.lora.packed_factor import PackedFactor
from ailora.lora.residual import compute_residuals
from ailora.path_kind import expand_home
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.safetensors_io import read_tensor
from ailora.weights.base_weight import BaseWeight, matches_fingerprint, select_rows, tensors_by_name
from ailora.weights.tied_weights import format_resize_hint


def resume(
    model: nn.Module, adapter: Path | str, *, adapter_name: str = "default", metadata: Path | str | None = None
) -> PeftModel:
    """Load a saved adapter into its base model for further training, with a frozen anchor.

    The anchor is read from the file, so no weight is decomposed. Only a Trainer's checkpoint in the residual form lacks
    the anchor. For such a checkpoint, the initial factors are computed again.

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
        ModelError: The model is not the base of the adapter.
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
    # All checks come before `inject`, so that a refused model stays unchanged.
    checkpoint.validate_finite()
    # Only in a plain model do modules have the names in the file: PEFT renames the modules of an adapted model.
    if not isinstance(model, PeftModel):
        validate_saved_modules(checkpoint, model)
    _validate_saved_shapes(model, checkpoint)
    weights = resolve_planned_weights(model, plan, adapter_name=adapter_name)
    _validate_same_base(plan, weights, adapter_metadata, base=get_base_model(model))
    # PEFT silently ignores a tensor whose name lacks the prefix.
    state = {add_prefix(tensor.name): read_tensor(tensor) for tensor in checkpoint.tensors}
    if not checkpoint.contains_anchor(plan):
        adapted = apply_plan(model, plan, adapter_name=adapter_name)
    else:
        factors = [
            _initial_factors(stored, plan, checkpoint.folder) for stored in checkpoint.read_projection_factors(plan)
        ]
        residuals = compute_residuals(weights, factors) if plan.form is Form.RESIDUAL else []
        adapted = inject(
            model, plan, factors, adapter_name=adapter_name, metadata=adapter_metadata, residuals=residuals
        )
        if plan.form is Form.RESIDUAL:
            state |= _residual_factors(adapted, checkpoint, state, adapter_name)
    set_peft_model_state_dict(adapted, state, adapter_name=adapter_name)
    return adapted


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
    if mismatch := checkpoint.find_scaling_mismatch(plan):
        module, scaling, planned = mismatch
        raise InputError(
            f"{checkpoint.folder}: adapter_config.json gives {module} the scaling {scaling:g}, but {METADATA_NAME} "
            f"gives {planned:g}: one of the files was edited, or belongs to a different adapter"
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


def _residual_factors(
    model: PeftModel, checkpoint: AdapterCheckpoint, state: Mapping[str, Tensor], adapter_name: str
) -> dict[str, Tensor]:
    """Convert stored factors to the residual form, `A = A0 + dA` and `B = B0 + dB`.

    Returns:
        Converted factors, by tensor name with PEFT's prefix.
    """
    factors = {}
    for module, pair in checkpoint.modules.items():
        layer = model.get_base_model().get_submodule(module)
        assert isinstance(layer, LoraLayer)
        for stored, lora_factors in ((pair.A, layer.lora_A), (pair.B, layer.lora_B)):
            factor = lora_factors[adapter_name]
            if isinstance(factor, PackedFactor):
                name = add_prefix(stored.name)
                factors[name] = factor.from_file(state[name])
    return factors


def _metadata_file(path: Path | str) -> Path:
    if not isinstance(path, str | Path):
        raise InputError(f"metadata must be the path of an {METADATA_NAME} or a folder with this file, got {path!r}")
    path = expand_home(path)
    return path if path.is_file() else path / METADATA_NAME


def _validate_saved_shapes(model: nn.Module, checkpoint: AdapterCheckpoint) -> None:
    """Refuse tensors of `modules_to_save` if the model has no parameter of their name and shape."""
    base = get_base_model(model)
    tensors = tensors_by_name(base)
    for name, stored in checkpoint.saved.items():
        # In a model with adapters, PEFT has moved the original parameter to `original_module`.
        module, _, parameter = name.rpartition(".")
        present = tensors.get(name, tensors.get(f"{module}.original_module.{parameter}"))
        if present is None or tuple(present.shape) != stored.shape:
            problem = "has no such parameter" if present is None else f"has a parameter of shape {tuple(present.shape)}"
            hint = "" if present is None else format_resize_hint(base, module, present.shape, stored.shape)
            raise ModelError(f"{stored}: the {type(base).__name__} {problem}{hint}")


def _validate_same_base(
    plan: Plan, weights: Mapping[str, BaseWeight], metadata: AdapterMetadata, *, base: nn.Module
) -> None:
    """Refuse a model if its weights differ from the adapter's base by more than the dtype.

    Quantized weights are not compared, because they have no comparable fingerprint.
    """
    for module, weight in weights.items():
        planned = plan.modules[module][0].projection.shape
        if weight.shape != planned:
            hint = format_resize_hint(base, module, weight.shape, planned)
            raise ModelError(f"{module} has the shape {weight.shape}, but the adapter was made for {planned}{hint}")
        expected = metadata.fingerprints.get(module)
        if weight.quantized_format is not None or expected is None:
            continue
        weight.validate_loaded()
        # None means that the dtypes allow no comparison.
        if matches_fingerprint(weight.stored(), expected, plan.modules[module][0].projection.dtype) is False:
            raise ModelError(
                f"{module}: the weight differs from the adapter's base ({metadata.base_model}). Load that base model; "
                "`ailora verify` shows details"
            )
