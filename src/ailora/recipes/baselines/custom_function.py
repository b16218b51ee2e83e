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
from ailora.recipes.baselines.adapter_origin import Made, made_of, record
from ailora.recipes.baselines.calibration_batches import Batches
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


def find_method(policy: str) -> Any:
    """The function `(model, context) -> model` that a policy names.

    Raises:
        InputError: no path of that form, a module that cannot be imported, nothing callable of that name in it.
    """
    name, _, function = policy.partition(":")
    where = f"adapter.policy {policy!r}"
    if not all(part.isidentifier() for part in name.split(".")) or not function.isidentifier():
        raise InputError(f"{where} is neither peft:NAME nor the path of a function, package.module:function")
    try:
        module = import_module(name)
    # Whatever a module raises while it is imported.
    except Exception as error:
        raise InputError(
            f"{where}: the module {name} cannot be imported ({type(error).__name__}: {error}); its folder must be on "
            "PYTHONPATH, or its package installed"
        ) from error
    found: Any = getattr(module, function, None)
    if callable(found):
        return found
    wrong = "has nothing of that name" if found is None else f"has a {type(found).__name__} of that name"
    raise InputError(f"{where}: {name} {wrong}; expected a function (model, context) -> model")


def apply_method(
    config: RunConfig, model: PreTrainedModel, loader: Callable[[Any], Any], load: Callable[[], PreTrainedModel]
) -> PreTrainedModel | PeftModel:
    """What the user's function makes of the base model.

    Args:
        config: the run's.
        model: the base model.
        loader: makes the loader of the training batches, given the model.
        load: loads the base model once more.

    Raises:
        ModelError: it returns no model that can be trained and saved.
        InputError: learning rates by role, which the function's model says nothing of.
    """
    policy = str(config.adapter.policy)
    before = {name: _checksum(parameter) for name, parameter in model.named_parameters()}
    context = MethodContext(config, config.training["seed"], Batches(lambda: loader(model)))
    made: Any = find_method(policy)(model, context)
    _validate_trainable(made, policy)
    if isinstance(made, PeftModel) and not has_ailora_adapter(made):
        changed = _changed(made, before)
        if changed:
            _validate_convertible(made, changed, load, policy)
        record(made, Made(None, bool(changed)))
    _check_learning_rates(config, made)
    return made


def _validate_trainable(made: Any, policy: str) -> None:
    if not isinstance(made, PreTrainedModel | PeftModel):
        raise ModelError(
            f"adapter.policy {policy} returned {_named(made)}; expected the model to be trained: a PeftModel or a "
            "PreTrainedModel"
        )
    if isinstance(made, PeftModel) and list(made.peft_config) != ["default"]:
        names = ", ".join(made.peft_config)
        raise ModelError(f"adapter.policy {policy} returned the adapters {names}; expected one, named default")
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise ModelError(f"adapter.policy {policy} returned a model of which nothing trains: requires_grad is False")


def _named(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def _check_learning_rates(config: RunConfig, made: Any) -> None:
    plan = made_of(made).plan
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
    made: PeftModel, changed: dict[str, str], load: Callable[[], PreTrainedModel], policy: str
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
            f"adapter.policy {policy} changed {own} of the base by something else than the start of its adapter "
            "(W - s B0 A0 of a LoRA): the adapter alone would not be the trained model; leave the base as it is, or "
            "return a PreTrainedModel"
        )
