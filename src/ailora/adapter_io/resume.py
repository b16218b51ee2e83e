"""Continue the training of an adapter from its file, with the anchor that is inside."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor, nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint, ProjectionFactors
from ailora.errors import AnchorMismatchError, InputError, ModelError
from ailora.inits import Factors
from ailora.lora.adapt import apply_plan
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import attach, get_base_model, prepare
from ailora.lora.residual import compute_residuals
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.safetensors_io import read_tensor
from ailora.weights.base_weight import (
    base_layer,
    matches_fingerprint,
    select_rows,
    stored_weight,
    tensors_by_name,
    validate_loaded,
)
from ailora.weights.quantized import find_storage
from ailora.weights.weight_source import model_source


def resume(
    model: nn.Module, adapter: Path | str, *, adapter_name: str = "default", sidecar: Path | str | None = None
) -> PeftModel:
    """Put a filed adapter on its base model so that it trains on as it did: the anchor frozen, the differences trained.

    Nothing is decomposed: the anchor is read from the file. Only an adapter in the residual form that was saved by
    PEFT while it trained has none inside; its start is computed again.

    Args:
        model: the base model that the adapter was made for.
        adapter: the folder of `ailora init`, of `save_adapter`, of a checkpoint of a Trainer, or of a run.
        adapter_name: PEFT's name for the adapter.
        sidecar: the adapter's `ailora.json` or its folder, where neither `adapter` nor a folder above it has one.

    Raises:
        InputError: no adapter there, or nothing says how it was made.
        ModelError: the model is another base.
        AnchorMismatchError: all of the file was trained, by code that knows of no anchor.
    """
    filed = AdapterCheckpoint.open(adapter)
    known = filed.sidecar if sidecar is None else AdapterMetadata.read(_sidecar_file(sidecar))
    if known is None:
        raise InputError(
            f"no {METADATA_NAME} in {filed.folder} or above it fits the adapter: give the folder that has it "
            "(sidecar=...), or train on with PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    if known.exported is not None:
        raise InputError(
            f"{filed.folder} is an export, without its anchor: resume from the adapter that was exported, or train on "
            "with PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    if reason := filed.misfit(known):
        raise InputError(f"the {METADATA_NAME} is of another adapter than {filed.folder}: {reason}")
    plan = Plan.from_dict(known.plan)
    _validate_scalings(plan, filed)
    _validate_saved(model, filed)
    built = prepare(model, plan, adapter_name=adapter_name)
    _validate_same_base(built, plan, known)
    if not filed.holds_anchor(plan):
        adapted = apply_plan(model, plan, adapter_name=adapter_name)
    else:
        starts = [_start(role, plan, filed.folder) for role in filed.roles(plan)]
        residual = plan.form is Form.RESIDUAL
        residuals = compute_residuals(built, starts, model_source(built)) if residual else []
        adapted = attach(model, plan, starts, adapter_name=adapter_name, sidecar=known, residuals=residuals)
    set_peft_model_state_dict(adapted, _state(filed, plan), adapter_name=adapter_name)
    return adapted


def _start(role: ProjectionFactors, plan: Plan, folder: Path) -> InitialFactors:
    if plan.form is Form.ANCHORED and role.trained_whole:
        raise AnchorMismatchError(
            f"{role.planned.projection.name}: the anchor in {folder} has moved: all of the file was trained, by code "
            "that knows of no anchor. Train on with PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    if not role.anchored:
        return InitialFactors(role.planned, Factors(role.A, role.B))
    A, B = role.start
    if role.all_rows:
        B = select_rows(B, role.planned.projection)
    return InitialFactors(role.planned, Factors(A.contiguous(), B.contiguous()))


def _state(filed: AdapterCheckpoint, plan: Plan) -> dict[str, Tensor]:
    """The tensors that are loaded. The residual form trains `A = A0 + dA` and `B` in place of the file's stacks."""
    state = {tensor.name: read_tensor(tensor) for tensor in filed.tensors}
    if plan.form is Form.RESIDUAL and filed.holds_anchor(plan):
        parts: dict[str, list[ProjectionFactors]] = {}
        for role in filed.roles(plan):
            parts.setdefault(role.planned.projection.module, []).append(role)
        for module, roles in parts.items():
            where = filed.modules[module]
            state[where.A.name], state[where.B.name] = _live(roles, where.B.shape[0], plan)
    return state


def _live(roles: list[ProjectionFactors], out: int, plan: Plan) -> tuple[Tensor, Tensor]:
    As, Bs = [], []
    for role in roles:
        A, B = role.A, role.B
        if role.anchored:
            (anchor, delta), (_, B) = A.chunk(2, dim=0), B.chunk(2, dim=1)
            A = anchor + delta
        whole = B.new_zeros(out, B.shape[1])
        rows = [range(start, stop) for start, stop in plan.trained_rows(role.planned.projection)]
        whole[[row for part in rows for row in part]] = B
        As.append(A)
        Bs.append(whole)
    return torch.cat(As, dim=0), torch.cat(Bs, dim=1)


def _sidecar_file(path: Path | str) -> Path:
    if not isinstance(path, str | Path):
        raise InputError(f"sidecar is the folder of an {METADATA_NAME}, not {path!r}")
    path = Path(path).expanduser()
    return path if path.is_file() else path / METADATA_NAME


def _validate_scalings(plan: Plan, filed: AdapterCheckpoint) -> None:
    """The configuration and the sidecar say the same."""
    if odd := filed.misscaled(plan):
        module, found, planned = odd
        raise InputError(
            f"{filed.folder}: its configuration scales {module} by {found:g}, its {METADATA_NAME} by {planned:g}: "
            "one of them is of another adapter, or was changed"
        )


def _validate_saved(model: nn.Module, filed: AdapterCheckpoint) -> None:
    """Modules that were trained whole have their place in the model."""
    own = tensors_by_name(get_base_model(model))
    for name, stored in filed.saved.items():
        # Beside another adapter PEFT keeps the base's own below the module.
        module, _, parameter = name.rpartition(".")
        place = own.get(name, own.get(f"{module}.original_module.{parameter}"))
        if place is None or tuple(place.shape) != stored.shape:
            found = "has no such parameter" if place is None else f"has {tuple(place.shape)} there"
            raise ModelError(f"{stored}: the {type(get_base_model(model)).__name__} {found}")


def _validate_same_base(base: nn.Module, plan: Plan, sidecar: AdapterMetadata) -> None:
    """The weights that the adapter was made from, in whatever dtype they are loaded; quantized ones cannot tell."""
    for module, group in plan.modules.items():
        layer = base_layer(base, module)
        expected = sidecar.fingerprints.get(module)
        if find_storage(layer) is not None or expected is None:
            continue
        validate_loaded(layer, module)
        weight = stored_weight(layer)
        if matches_fingerprint(weight, expected, group[0].projection.dtype) is False:
            raise ModelError(
                f"{module}: the weight is not the one that the adapter was made from ({sidecar.base_model}): "
                "load that base model; ailora verify says more"
            )
