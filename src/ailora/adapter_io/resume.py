"""Resume the training of a saved adapter, with the anchor from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint, ProjectionFactors
from ailora.errors import AnchorMismatchError, InputError, ModelError
from ailora.inits import Factors
from ailora.lora.adapt import apply_plan
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import get_base_model, inject, prepare
from ailora.lora.packed_factor import PackedFactor
from ailora.lora.residual import compute_residuals
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.safetensors_io import read_tensor
from ailora.weights.base_weight import BaseWeight, matches_fingerprint, select_rows, tensors_by_name
from ailora.weights.tied_weights import format_resize_hint


def resume(
    model: nn.Module, adapter: Path | str, *, adapter_name: str = "default", metadata: Path | str | None = None
) -> PeftModel:
    """Load a saved adapter onto its base model for further training, with a frozen anchor.

    The anchor comes from the file, without a decomposition. Only the residual form as PEFT saves it during training
    has no anchor inside; its initial factors are computed again.

    Args:
        model: Base model of the adapter.
        adapter: Folder of `ailora init`, of `save_adapter`, of a Trainer's checkpoint, or of a run.
        adapter_name: PEFT's name for the adapter.
        metadata: The adapter's `ailora.json` or its folder, if neither `adapter` nor a folder above has one.

    Returns:
        The adapted model.

    Raises:
        InputError: The folder holds no valid adapter, or no metadata fit the adapter.
        ModelError: The model is another base.
        AnchorMismatchError: A stock trainer trained the anchor too.

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
    origin = checkpoint.metadata if metadata is None else AdapterMetadata.read(_metadata_file(metadata))
    plan = _validate_resumable(checkpoint, origin)
    assert origin is not None
    # All checks come before `inject`: a refused model stays unchanged.
    checkpoint.validate_finite()
    # PEFT renames the modules of a model that has an adapter already.
    if not isinstance(model, PeftModel):
        checkpoint.validate_saved_modules(model)
    _validate_saved_modules(model, checkpoint)
    weights = prepare(model, plan, adapter_name=adapter_name)
    _validate_same_base(plan, weights, origin, base=get_base_model(model))
    state = {tensor.name: read_tensor(tensor) for tensor in checkpoint.tensors}
    if not checkpoint.contains_anchor(plan):
        adapted = apply_plan(model, plan, adapter_name=adapter_name)
    else:
        factors = [_initial_factors(role, plan, checkpoint.folder) for role in checkpoint.projection_factors(plan)]
        residuals = compute_residuals(weights, factors) if plan.form is Form.RESIDUAL else []
        adapted = inject(model, plan, factors, adapter_name=adapter_name, metadata=origin, residuals=residuals)
        if plan.form is Form.RESIDUAL:
            state |= _residual_factors(adapted, checkpoint, state, adapter_name)
    set_peft_model_state_dict(adapted, state, adapter_name=adapter_name)
    return adapted


def _validate_resumable(checkpoint: AdapterCheckpoint, metadata: AdapterMetadata | None) -> Plan:
    """Refuse an adapter without metadata, an export, and files that contradict each other.

    Returns:
        Plan of the adapter.

    Raises:
        InputError: The adapter cannot be resumed. The message names the alternative.
    """
    stock = "train on with PeftModel.from_pretrained(model, folder, is_trainable=True)"
    if metadata is None:
        raise InputError(
            f"no {METADATA_NAME} in {checkpoint.folder} or above it fits the adapter: give the folder that has it "
            f"(metadata=...), or {stock}"
        )
    if metadata.exported is not None:
        raise InputError(
            f"{checkpoint.folder} is an export, without its anchor: resume from the adapter that was exported, or "
            f"{stock}"
        )
    if reason := checkpoint.mismatch_reason(metadata):
        raise InputError(f"the {METADATA_NAME} is of another adapter than {checkpoint.folder}: {reason}")
    plan = metadata.parsed_plan
    if mismatch := checkpoint.find_scaling_mismatch(plan):
        module, scaling, planned = mismatch
        raise InputError(
            f"{checkpoint.folder}: its configuration scales {module} by {scaling:g}, its {METADATA_NAME} by "
            f"{planned:g}: one of them is of another adapter, or was changed"
        )
    return plan


def _initial_factors(role: ProjectionFactors, plan: Plan, folder: Path) -> InitialFactors:
    if plan.form is Form.ANCHORED and role.anchor_was_trained:
        raise AnchorMismatchError(
            f"{role.planned.projection.name}: the anchor in {folder} has moved: all of the file was trained, by code "
            "that knows of no anchor. Train on with PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    if not role.anchored:
        return InitialFactors(role.planned, Factors(role.A, role.B))
    A, B = role.anchor
    if role.covers_all_rows:
        B = select_rows(B, role.planned.projection)
    return InitialFactors(role.planned, Factors(A.contiguous(), B.contiguous()))


def _residual_factors(
    model: PeftModel, checkpoint: AdapterCheckpoint, state: Mapping[str, Tensor], adapter_name: str
) -> dict[str, Tensor]:
    """Convert the factors of a file to those of the residual form, `A = A0 + dA` and `B`, by name in the file."""
    factors = {}
    for module, weights in checkpoint.modules.items():
        layer = model.get_base_model().get_submodule(module)
        assert isinstance(layer, LoraLayer)
        for stored, side in ((weights.A, layer.lora_A), (weights.B, layer.lora_B)):
            factor = side[adapter_name]
            if isinstance(factor, PackedFactor):
                factors[stored.name] = factor.from_file(state[stored.name])
    return factors


def _metadata_file(path: Path | str) -> Path:
    if not isinstance(path, str | Path):
        raise InputError(f"metadata is the folder of an {METADATA_NAME}, not {path!r}")
    path = Path(path).expanduser()
    return path if path.is_file() else path / METADATA_NAME


def _validate_saved_modules(model: nn.Module, checkpoint: AdapterCheckpoint) -> None:
    """Refuse modules trained whole that the model does not have, or has in another shape."""
    base = get_base_model(model)
    tensors = tensors_by_name(base)
    for name, stored in checkpoint.saved.items():
        # If the model has another adapter, PEFT has moved the base's own parameter to `original_module`.
        module, _, parameter = name.rpartition(".")
        place = tensors.get(name, tensors.get(f"{module}.original_module.{parameter}"))
        if place is None or tuple(place.shape) != stored.shape:
            has = "has no such parameter" if place is None else f"has {tuple(place.shape)} there"
            hint = "" if place is None else format_resize_hint(base, module, place.shape, stored.shape)
            raise ModelError(f"{stored}: the {type(base).__name__} {has}{hint}")


def _validate_same_base(
    plan: Plan, weights: Mapping[str, BaseWeight], metadata: AdapterMetadata, *, base: nn.Module
) -> None:
    """Refuse a base with other weights, in any dtype; fingerprints say nothing of quantized weights."""
    for module, weight in weights.items():
        planned = plan.modules[module][0].projection.shape
        if weight.shape != planned:
            hint = format_resize_hint(base, module, weight.shape, planned)
            raise ModelError(f"{module} is {weight.shape}, the adapter was made for {planned}{hint}")
        expected = metadata.fingerprints.get(module)
        if weight.storage is not None or expected is None:
            continue
        weight.validate_loaded()
        if matches_fingerprint(weight.stored(), expected, plan.modules[module][0].projection.dtype) is False:
            raise ModelError(
                f"{module}: the weight is not the one that the adapter was made from ({metadata.base_model}): "
                "load that base model; ailora verify says more"
            )
