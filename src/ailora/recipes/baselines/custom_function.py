"""Adapt models with functions written by users: `adapter.policy: package.module:function`.

The function takes the base model and a `MethodContext`, and returns the model to train: a `PeftModel` with a single
adapter named `default`, or a `PreTrainedModel` that `from_pretrained` can load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from ailora.errors import InputError, ModelError
from ailora.lora.inject import has_ailora_adapter
from ailora.optim.param_groups import parse_multipliers
from ailora.recipes.baselines.adapter_origin import AdapterOrigin, get_adapter_origin, set_adapter_origin
from ailora.recipes.baselines.calibration_batches import Batches
from ailora.recipes.config.method import CustomFunction
from ailora.recipes.config.schema import RunConfig

#: Largest accepted ratio of norms `|W_res + s B0 A0 - W| / (|W| + |s B0 A0|)`, in epsilons of the dtype. Rounding
#: `W_res` and `s B0 A0` to the dtype contributes about one epsilon.
_MAX_ERROR_EPS = 8


@dataclass(frozen=True)
class MethodContext:
    """Second argument of a user's function, after the base model.

    Attributes:
        config: Configuration of the run.
        seed: Seed of the run, set globally before the base model is loaded.
        batches: Training batches of the first epoch.
    """

    config: RunConfig
    seed: int
    batches: Batches


def import_function(method: CustomFunction) -> Callable[[PreTrainedModel, MethodContext], object]:
    """Import the function of a method.

    Args:
        method: Module and name of the function.

    Returns:
        The function `(model, context) -> model`.

    Raises:
        InputError: The module cannot be imported, or has no function with this name.
    """
    where = f"adapter.policy '{method}'"
    try:
        module = import_module(method.module)
    # A module written by the user may raise any exception on import.
    except Exception as error:
        raise InputError(
            f"{where}: the module {method.module} cannot be imported ({type(error).__name__}: {error}); add "
            "its folder to PYTHONPATH, or install its package"
        ) from error
    function = getattr(module, method.name, None)
    if callable(function):
        return function
    problem = (
        f"{method.module} has no attribute {method.name!r}"
        if function is None
        else f"{method.name!r} is of type {type(function).__name__}"
    )
    raise InputError(f"{where}: {problem}; expected a function (model, context) -> model")


def apply_function(
    method: CustomFunction,
    config: RunConfig,
    model: PreTrainedModel,
    make_loader: Callable[[Any], Any],
    *,
    reload_base: Callable[[], PreTrainedModel],
) -> PreTrainedModel | PeftModel:
    """Adapt the base model with the user's function.

    Args:
        method: Module and name of the function.
        config: Configuration of the run.
        model: Base model.
        make_loader: Function that builds the data loader of training batches for a model.
        reload_base: Function that loads the base model again; called if base weights changed, to compare the weights.

    Returns:
        The model to train, as the function returned it.

    Raises:
        ModelError: The function returned no model, or its model cannot be trained or saved.
        InputError: `adapter.learning_rates` is set, but the returned model has no roles.
    """
    # Store checksums, because a copy of the base model would double its memory.
    checksums = {name: _compute_checksum(parameter) for name, parameter in model.named_parameters()}
    context = MethodContext(config, config.training["seed"], Batches(lambda: make_loader(model)))
    adapted = _validate_trainable(import_function(method)(model, context), method)
    if isinstance(adapted, PeftModel) and not has_ailora_adapter(adapted):
        changed = _find_changed_parameters(adapted, checksums)
        if changed:
            _validate_convertible(adapted, changed, reload_base, method)
        set_adapter_origin(adapted, AdapterOrigin(plan=None, overwrites_base=bool(changed)))
    _validate_learning_rates(config, adapted)
    return adapted


def _validate_trainable(model: object, method: CustomFunction) -> PreTrainedModel | PeftModel:
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise ModelError(
            f"adapter.policy {method} returned {_describe_type(model)}; expected a PeftModel or a PreTrainedModel "
            "to train"
        )
    if isinstance(model, PeftModel) and list(model.peft_config) != ["default"]:
        names = ", ".join(model.peft_config)
        raise ModelError(
            f"adapter.policy {method} returned adapters named {names}; expected a single adapter, named 'default'"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"adapter.policy {method} returned a model without trainable parameters (requires_grad)")
    return model


def _describe_type(value: object) -> str:
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def _validate_learning_rates(config: RunConfig, model: PreTrainedModel | PeftModel) -> None:
    plan = get_adapter_origin(model).plan
    if config.adapter.learning_rates and plan is None:
        raise InputError(
            f"adapter.learning_rates cannot be combined with {config.adapter.policy}: only models that "
            "ailora.adapt returns have parameters by role"
        )
    if plan is not None:
        parse_multipliers(config.adapter.learning_rates).validate_adapted(plan.counts)


def _compute_checksum(parameter: torch.Tensor) -> tuple[float, float]:
    """Return the sum and the norm of a parameter; every deliberate update changes at least one of these numbers."""
    # Compute on the CPU: devices round sums differently, and building a data loader moves the model to the accelerator.
    values = parameter.detach().cpu()
    values = values if values.is_floating_point() else values.float()
    return float(values.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _find_changed_parameters(adapted: PeftModel, checksums: dict[str, tuple[float, float]]) -> dict[str, str]:
    """Find the base parameters whose values changed.

    Args:
        adapted: Adapted model.
        checksums: Checksum of each parameter of the base model, before the model was adapted.

    Returns:
        Name in the base model -> name in the adapted model.
    """
    changed = {}
    for name, parameter in adapted.get_base_model().named_parameters():
        base_name = name.replace(".base_layer", "").replace(".original_module", "")
        if base_name in checksums and _compute_checksum(parameter) != checksums[base_name]:
            changed[base_name] = name
    return changed


def _validate_convertible(
    adapted: PeftModel, changed: dict[str, str], reload_base: Callable[[], PreTrainedModel], method: CustomFunction
) -> None:
    """Validate that each changed base weight is the residual of its adapter, `W_res = W - s B0 A0`."""
    # Loading may draw random numbers for a new head, but must not change the random state of the run.
    with torch.random.fork_rng(devices=[]):
        base = dict(reload_base().named_parameters())
    for base_name, name in changed.items():
        module = name.removesuffix(".base_layer.weight")
        # Other parameters, such as biases and embeddings, have no residual.
        layer = adapted.get_base_model().get_submodule(module) if module != name else None
        if isinstance(layer, LoraLayer):
            lora: Any = layer
            weight = lora.get_base_layer().weight.detach()
            initial_delta = lora.get_delta_weight("default").detach().float()
            original = base[base_name].detach().to(weight.device).float()
            error = torch.linalg.norm(weight.float() + initial_delta - original)
            scale = torch.linalg.norm(original) + torch.linalg.norm(initial_delta)
            if error <= _MAX_ERROR_EPS * torch.finfo(weight.dtype).eps * scale:
                continue
        raise ModelError(
            f"adapter.policy {method} changed the base parameter {base_name} to a value other than the residual weight "
            "W - s B0 A0 of its adapter, so a saved adapter would not reproduce the trained model; leave the base "
            "unchanged, or return a PreTrainedModel"
        )
