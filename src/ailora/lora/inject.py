"""Inject initial factors into a model, atomically."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils.other import TrainableTokensWrapper
from torch import nn

from ailora.distributed import compute_and_broadcast_from_rank0
from ailora.errors import ModelError
from ailora.lora.adapter_name import validate_adapter_name, validate_existing_names
from ailora.lora.anchored_lora_model import AnchoredLoraModel
from ailora.lora.base_model import find_changed_weight, get_base_model, validate_unmerged
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.lora_config import build_training_config
from ailora.lora.packed_factor import validate_same_anchors
from ailora.lora.parallelism_support import validate_parallelism
from ailora.lora.residual import Residual, validate_residual_form
from ailora.lora.set_factors import set_factors
from ailora.plan.adapter_metadata import AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.roles import weight_shape
from ailora.weights.base_weight import BaseWeight, resolve_weights
from ailora.weights.quantized import find_quantized_format

_LOG = logging.getLogger("ailora")


def resolve_planned_weights(model: nn.Module, plan: Plan, *, adapter_name: str) -> dict[str, BaseWeight]:
    """Validate a model against a plan, and look up the base weights of the planned modules.

    Returns:
        The base weight of each planned module, by module name.

    Raises:
        InputError, ModelError: See `apply_plan`.
    """
    validate_adapter_name(model, adapter_name)
    _validate_existing_adapters(model, plan)
    base = get_base_model(model)
    weights = resolve_weights(base, plan.modules)
    validate_parallelism(base, plan, weights)
    if plan.options.dora:
        _validate_dora(weights)
    _validate_modules_to_save(base, plan)
    if plan.form is Form.RESIDUAL:
        validate_residual_form(base, plan, weights)
    _validate_unchanged_base(model, weights)
    return weights


def inject(
    model: nn.Module,
    plan: Plan,
    factors: Sequence[InitialFactors],
    *,
    adapter_name: str,
    metadata: AdapterMetadata,
    residuals: Sequence[Residual] = (),
    load: Callable[[PeftModel, ExitStack], None] | None = None,
) -> PeftModel:
    """Inject an adapter into every planned projection. If an error is raised, the model is unchanged.

    Args:
        model: A model validated by `resolve_planned_weights`.
        plan: Adapter settings of every projection.
        factors: Initial factors of every planned adapter.
        adapter_name: PEFT's name for the adapter.
        metadata: Metadata of the adapter, for `get_metadata`.
        residuals: Residual weights that replace the base weights in the residual form. Empty in all other forms.
        load: Function that loads saved tensors into the adapted model. Before it overwrites tensors of the base model,
            it registers callbacks with the `ExitStack` that restore them. None keeps the initial factors.

    Returns:
        The adapted model: `model` if already a `PeftModel`, else a new `PeftModel`.

    Raises:
        ModelError: PEFT cannot adapt the model as planned, or `load` raises this error.
    """
    base = get_base_model(model)
    # PEFT draws random factors, which are replaced below. The fork keeps the caller's random state unchanged. Without a
    # list of devices, the fork would initialize all GPUs of the machine, and warn that there are several.
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with _unchanged_on_error(model, adapter_name), torch.random.fork_rng(devices=devices):
        adapted = _add_peft_adapter(model, build_training_config(plan, base), adapter_name)
        layers = _get_planned_layers(base, plan, adapter_name)
        for module, group in _group_by_module(factors).items():
            set_factors(layers[module], group, adapter_name, plan)
        # If a residual cannot be written or `load` fails, `undo` restores the tensors that are already overwritten.
        # After success, `pop_all` drops the callbacks that would restore them.
        with ExitStack() as undo:
            for residual in residuals:
                residual.write(undo)
            if load is not None:
                load(adapted, undo)
            undo.pop_all()
    metadata_by_name = _get_all_metadata(adapted)
    # A single hook, registered with the first adapter, checks the anchors of all adapters before any tensor is loaded.
    # The hooks of single factors would find a mismatch only after earlier factors have been loaded.
    if not metadata_by_name:
        adapted.register_load_state_dict_pre_hook(validate_same_anchors)
    _to_anchored(adapted).ailora_metadata = {**metadata_by_name, adapter_name: metadata}
    _LOG.info("adapted %s: %s", type(base).__name__, plan)
    return adapted


def get_metadata(model: nn.Module, adapter_name: str = "default") -> AdapterMetadata:
    """Return the metadata of an adapter that ailora added to the model in this process.

    Raises:
        ModelError: ailora has added no adapter of this name to the model, the adapter was removed, or the model is the
            wrapper of a `PeftModel`, such as a compiled model.
    """
    _validate_unwrapped(model)
    metadata_by_name = _get_all_metadata(model)
    if adapter_name not in metadata_by_name:
        names = ", ".join(metadata_by_name) or "none"
        raise ModelError(f"the model has no adapter {adapter_name!r} made by ailora; it has: {names}")
    for module in metadata_by_name[adapter_name].parsed_plan.modules:
        layer = get_base_model(model).get_submodule(module)
        if not isinstance(layer, LoraLayer) or adapter_name not in layer.lora_A:
            raise ModelError(f"the adapter {adapter_name!r} was removed from the model: it is missing in {module}")
    return metadata_by_name[adapter_name]


def _validate_unwrapped(model: nn.Module) -> None:
    """Refuse the wrappers of torch.compile, DataParallel, DDP and FSDP."""
    if isinstance(model, PeftModel):
        return
    for attribute in ("_orig_mod", "module"):
        if isinstance(getattr(model, attribute, None), PeftModel):
            raise ModelError(
                f"expected a PeftModel, got its {type(model).__name__}: pass the PeftModel itself, model.{attribute}"
            )


def has_ailora_adapter(model: nn.Module, adapter_name: str = "default") -> bool:
    """Return whether ailora has added an adapter of this name to the model in this process."""
    return adapter_name in _get_all_metadata(model)


def _validate_existing_adapters(model: nn.Module, plan: Plan) -> None:
    """Refuse adapters beside which another cannot be trained and saved.

    These are merged adapters, adapters other than LoRA, adapters whose name is a component of a tensor name, trained
    tokens, and adapters in the residual form.
    """
    if not isinstance(model, PeftModel):
        return
    if not isinstance(model.base_model, LoraModel) or not model.peft_config:
        raise ModelError("the PeftModel has adapters other than LoRA: pass its base model instead")
    validate_existing_names(model)
    validate_unmerged(model)
    if any(isinstance(module, TrainableTokensWrapper) for module in model.modules()):
        raise ModelError(
            "the PeftModel has an adapter with trainable_token_indices, beside which PEFT cannot save another one: "
            "pass a newly loaded base model"
        )
    residual_adapters = [
        name for name, metadata in _get_all_metadata(model).items() if metadata.parsed_plan.form is Form.RESIDUAL
    ]
    if residual_adapters or plan.form is Form.RESIDUAL:
        raise ModelError(
            "an adapter in the residual form changes the base weights, and excludes any second adapter"
            + (f" (the model has {residual_adapters[0]!r})" if residual_adapters else "")
            + ": use form='anchored'"
        )


def _validate_unchanged_base(model: nn.Module, weights: Mapping[str, BaseWeight]) -> None:
    """Refuse base weights that differ from those of an existing adapter made by ailora.

    Merging and unmerging an adapter changes base weights by rounding. A second adapter would then belong to a base
    model that exists only in this process.
    """
    for adapter_name, metadata in _get_all_metadata(model).items():
        # Rank 0 decides for all ranks, because other ranks may not have read their weights.
        if module := compute_and_broadcast_from_rank0(partial(find_changed_weight, weights, metadata)):
            raise ModelError(
                f"{module}: the base weight has changed since the adapter {adapter_name!r} was added, for example "
                "by the rounding of merging and unmerging. An adapter for this weight would fit no saved model: load "
                "the base model again"
            )


def _validate_dora(weights: Mapping[str, BaseWeight]) -> None:
    """Refuse DoRA on 8-bit layers of bitsandbytes."""
    # PEFT reads the quantization scales from the weight, but bitsandbytes moves them to the layer in the first forward
    # pass.
    for module, weight in weights.items():
        if type(weight.layer._parameters.get("weight")).__name__ == "Int8Params":
            raise ModelError(
                f"{module}: dora does not work on 8-bit weights of bitsandbytes in PEFT; quantize to 4 bits instead"
            )


def _validate_modules_to_save(base: nn.Module, plan: Plan) -> None:
    """Refuse quantized modules in `modules_to_save`."""
    for name, module in base.named_modules():
        is_saved = any(f".{saved}." in f".{name}." for saved in plan.options.modules_to_save)
        if is_saved and weight_shape(module) is not None and find_quantized_format(module) is not None:
            raise ModelError(f"modules_to_save: {name} is quantized and cannot be fully fine-tuned")


def _get_all_metadata(model: nn.Module) -> dict[str, AdapterMetadata]:
    # A PeftModel and its wrappers forward attribute look-ups to the AnchoredLoraModel.
    return getattr(model, "ailora_metadata", {})


def _to_anchored(model: PeftModel) -> AnchoredLoraModel:
    """Change the class of the model's `LoraModel` to `AnchoredLoraModel`, in place."""
    # Trainers and wrappers may already refer to the `LoraModel`, so a new object would not reach them. Changing the
    # class is safe, because the subclass overrides methods only.
    assert isinstance(model.base_model, LoraModel)
    model.base_model.__class__ = AnchoredLoraModel
    return cast(AnchoredLoraModel, model.base_model)


def _add_peft_adapter(model: nn.Module, config: LoraConfig, adapter_name: str) -> PeftModel:
    """Add and activate an adapter with PEFT's initial factors.

    Raises:
        ModelError: PEFT cannot adapt the model with this configuration.
    """
    with warnings.catch_warnings():
        # PEFT reads a deprecated property of transformers. Users cannot avoid the warning.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        try:
            if not isinstance(model, PeftModel):
                return get_peft_model(model, config, adapter_name=adapter_name)  # type: ignore[return-value]
            model.add_adapter(adapter_name, config)
        except (TypeError, ValueError) as error:
            raise ModelError(f"PEFT cannot adapt {type(get_base_model(model)).__name__} as planned: {error}") from error
    model.set_adapter(adapter_name)
    return model


def _group_by_module(factors: Sequence[InitialFactors]) -> dict[str, list[InitialFactors]]:
    by_module: dict[str, list[InitialFactors]] = {}
    for initial in factors:
        by_module.setdefault(initial.planned.projection.module, []).append(initial)
    return by_module


def _get_planned_layers(base: nn.Module, plan: Plan, adapter_name: str) -> dict[str, LoraLayer]:
    """Return PEFT's layers of the planned modules.

    Raises:
        ModelError: PEFT's modules or scalings differ from the plan.
    """
    layers = {
        name: layer
        for name, layer in base.named_modules()
        if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A
    }
    planned = {a.projection.module: a.scaling for a in plan.adapters}
    if missing := sorted(planned.keys() - layers.keys()):
        raise ModelError(
            f"PEFT did not adapt {missing[0]}{_and_more(missing)}. In mixture-of-experts models, PEFT treats all "
            "modules named gate_proj, up_proj and down_proj as experts: remove gate, up and down from `roles`"
        )
    if unplanned := sorted(layers.keys() - planned.keys()):
        raise ModelError(f"PEFT adapted {unplanned[0]}{_and_more(unplanned)}, which the plan does not contain")
    for module, scaling in planned.items():
        # PEFT computes the scaling from alpha and the rank, so it may differ by a rounding error.
        if abs(layers[module].scaling[adapter_name] - scaling) > 1e-12 * scaling:
            peft_scaling = layers[module].scaling[adapter_name]
            raise ModelError(f"PEFT scales {module} by {peft_scaling}, but the plan by {scaling}")
    return layers


def _and_more(modules: list[str]) -> str:
    return f" and {len(modules) - 1} more" if len(modules) > 1 else ""


@contextmanager
def _unchanged_on_error(model: nn.Module, adapter_name: str) -> Generator[None, None, None]:
    """Restore a model's modules, gradient flags and adapters if the body of the `with` statement raises an error."""
    base = get_base_model(model)
    # `named_children()` would omit the second name of a module registered twice.
    children = [(parent, dict(parent._modules)) for parent in base.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    # PEFT stores the active adapter twice: in the `PeftModel`, and in the `LoraModel` with its layers.
    active = (model.active_adapter, list(model.active_adapters)) if isinstance(model, PeftModel) else None
    try:
        yield
    except BaseException:
        if isinstance(model, PeftModel):
            assert isinstance(model.base_model, LoraModel)
            assert active is not None
            # Deleting the active adapter would activate a different one, with a warning.
            model.base_model.set_adapter(active[1])
            if adapter_name in model.peft_config:
                model.delete_adapter(adapter_name)
            model.active_adapter = active[0]
        elif hasattr(base, "peft_config"):
            delattr(base, "peft_config")
        for parent, before in children:
            for name in parent._modules.keys() - before.keys():
                delattr(parent, name)
            for name, child in before.items():
                setattr(parent, name, child)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise
