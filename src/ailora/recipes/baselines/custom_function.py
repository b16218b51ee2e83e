"""Methods of the user's own: `adapter.policy: package.module:function`.

The function gets the base model and a `MethodContext`, and returns the model to be trained: a `PeftModel` with one
adapter, named `default`, or a `PreTrainedModel` that `from_pretrained` loads again.
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

#: Roundings of its dtype that a weight and the start that was taken out of it may differ from the base by.
_ROUNDINGS = 8


@dataclass(frozen=True)
class MethodContext:
    """What a method is told.

    Attributes:
        config: the run's.
        seed: the run's seed; the global random state is seeded with it before the base model is loaded.
        batches: the batches of the first epoch of training, as often as they are iterated over.
    """

    config: RunConfig
    seed: int
    batches: Batches


def import_function(method: CustomFunction) -> Callable[[PreTrainedModel, MethodContext], object]:
    """Import the function `(model, context) -> model` of a method.

    Raises:
        InputError: the module cannot be imported, or holds nothing callable of that name.
    """
    where = f"adapter.policy '{method}'"
    try:
        module = import_module(method.module)
    # Whatever a module raises while it is imported.
    except Exception as error:
        raise InputError(
            f"{where}: the module {method.module} cannot be imported ({type(error).__name__}: {error}); its folder "
            "must be on PYTHONPATH, or its package installed"
        ) from error
    function = getattr(module, method.name, None)
    if callable(function):
        return function
    problem = "has nothing of that name" if function is None else f"has a {type(function).__name__} of that name"
    raise InputError(f"{where}: {method.module} {problem}; expected a function (model, context) -> model")


def apply_function(
    method: CustomFunction,
    config: RunConfig,
    model: PreTrainedModel,
    loader: Callable[[Any], Any],
    *,
    load: Callable[[], PreTrainedModel],
) -> PreTrainedModel | PeftModel:
    """Let the user's function adapt the base model.

    Args:
        method: the function.
        config: the run's.
        model: the base model.
        loader: makes the loader of the training batches, given the model.
        load: loads the base model once more.

    Raises:
        ModelError: it returns no model that can be trained and saved.
        InputError: learning rates by role, which the function's model says nothing of.
    """
    before = {name: _checksum(parameter) for name, parameter in model.named_parameters()}
    context = MethodContext(config, config.training["seed"], Batches(lambda: loader(model)))
    made = _validate_trainable(import_function(method)(model, context), method)
    if isinstance(made, PeftModel) and not has_ailora_adapter(made):
        changed = _changed(made, before)
        if changed:
            _validate_convertible(made, changed, load, method)
        set_adapter_origin(made, AdapterOrigin(None, bool(changed)))
    _validate_learning_rates(config, made)
    return made


def _validate_trainable(made: object, method: CustomFunction) -> PreTrainedModel | PeftModel:
    if not isinstance(made, PreTrainedModel | PeftModel):
        raise ModelError(
            f"adapter.policy {method} returned {_named(made)}; expected the model to be trained: a PeftModel or a "
            "PreTrainedModel"
        )
    if isinstance(made, PeftModel) and list(made.peft_config) != ["default"]:
        names = ", ".join(made.peft_config)
        raise ModelError(f"adapter.policy {method} returned the adapters {names}; expected one, named default")
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise ModelError(f"adapter.policy {method} returned a model of which nothing trains: requires_grad is False")
    return made


def _named(value: object) -> str:
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def _validate_learning_rates(config: RunConfig, made: PreTrainedModel | PeftModel) -> None:
    plan = get_adapter_origin(made).plan
    if config.adapter.learning_rates and plan is None:
        raise InputError(
            f"adapter.learning_rates does not go with {config.adapter.policy}: only a model of ailora.adapt says which "
            "parameter belongs to which role"
        )
    if plan is not None:
        parse_multipliers(config.adapter.learning_rates).validate_adapted(plan.counts)


def _checksum(parameter: torch.Tensor) -> tuple[float, float]:
    """Two sums that no change of a weight that anyone makes on purpose leaves alone."""
    # On another device sums are rounded otherwise, and the trainer of the batches moves the model.
    values = parameter.detach().cpu()
    values = values if values.is_floating_point() else values.float()
    return float(values.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _changed(made: PeftModel, before: dict[str, tuple[float, float]]) -> dict[str, str]:
    """The base's parameters whose values are others now: their name there -> their name in the adapted model."""
    changed = {}
    for name, parameter in made.get_base_model().named_parameters():
        own = name.replace(".base_layer", "").replace(".original_module", "")
        if own in before and _checksum(parameter) != before[own]:
            changed[own] = name
    return changed


def _validate_convertible(
    made: PeftModel, changed: dict[str, str], load: Callable[[], PreTrainedModel], method: CustomFunction
) -> None:
    """What was taken out of the base is the start of the adapter, so that it can be given back."""
    with torch.random.fork_rng():
        base = dict(load().named_parameters())
    for own, name in changed.items():
        layer = made.get_base_model().get_submodule(name.removesuffix(".base_layer.weight"))
        if name.endswith(".base_layer.weight") and isinstance(layer, LoraLayer):
            adapted: Any = layer
            weight = adapted.get_base_layer().weight.detach()
            start = adapted.get_delta_weight("default").detach().float()
            original = base[own].detach().to(weight.device).float()
            error = torch.linalg.norm(weight.float() + start - original)
            size = torch.linalg.norm(original) + torch.linalg.norm(start)
            if error <= _ROUNDINGS * torch.finfo(weight.dtype).eps * size:
                continue
        raise ModelError(
            f"adapter.policy {method} changed {own} of the base by something else than the start of its adapter "
            "(W - s B0 A0 of a LoRA): the adapter alone would not be the trained model; leave the base as it is, or "
            "return a PreTrainedModel"
        )
