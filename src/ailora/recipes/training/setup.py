"""Load, plan and adapt the model of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel, set_seed

from ailora.errors import InputError
from ailora.inits import PRESETS
from ailora.lora import apply_plan
from ailora.model_path import resolve_model
from ailora.optim.param_groups import parse_multipliers
from ailora.plan import Plan, make_plan
from ailora.recipes.baselines.custom_function import apply_function
from ailora.recipes.baselines.peft_inits import apply_peft_init
from ailora.recipes.config.method import AiloraPolicy, CustomFunction, FullFineTuning, Method, PeftInit
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.recipe import Model, Recipe


def load_and_adapt(recipe: Recipe[RunConfig]) -> tuple[Model, float]:
    """Load and adapt the base model of a run. New heads are initialized with the seed of the run.

    Args:
        recipe: Recipe of the run. Its training batches are built only for methods with calibration data.

    Returns:
        The adapted model, and the duration of loading and adapting in seconds.

    Raises:
        InputError: The model cannot be loaded.
        ModelError: The model cannot be adapted as configured.
    """
    load = partial(recipe.load_model, resolve_model(recipe.config.model))
    started = time.perf_counter()
    set_seed(recipe.config.training["seed"])
    model = _adapt(recipe, load(), load)
    return model, time.perf_counter() - started


def _adapt(recipe: Recipe[RunConfig], base: PreTrainedModel, load: Callable[[], PreTrainedModel]) -> Model:
    config = recipe.config
    match config.adapter.method:
        case FullFineTuning():
            return base
        case AiloraPolicy():
            return apply_plan(base, plan_adapter(config, base))
        case PeftInit() as init:
            _validate_no_sharding(config, init)
            return apply_peft_init(init, config, base, plan_adapter(config, base), make_loader=recipe.training_batches)
        case CustomFunction() as function:
            _validate_no_sharding(config, function)
            return apply_function(function, config, base, recipe.training_batches, reload_base=load)


def _validate_no_sharding(config: RunConfig, method: Method) -> None:
    # Only ailora's own code for saving adapters gathers the shards of a model.
    if config.training.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise InputError(
            f"adapter.policy {method} cannot be combined with FSDP; use DDP, or one of the policies "
            + ", ".join(PRESETS)
        )


def plan_adapter(config: RunConfig, model: PreTrainedModel) -> Plan:
    """Plan the adapter of a run.

    Args:
        config: Configuration of the run.
        model: Base model, possibly on the meta device.

    Returns:
        The plan.

    Raises:
        InputError: A role has a learning rate but no adapter, or the method has no plan.
        ModelError: The model cannot be adapted as configured.
    """
    adapter = config.adapter
    method = adapter.method
    if not isinstance(method, AiloraPolicy | PeftInit):
        raise InputError(f"adapter.policy {method} has no plan, because the method itself chooses what to train")
    plan = make_plan(model, method.policy, **adapter.plan_options(), task_type=config.task_type)
    parse_multipliers(adapter.learning_rates).validate_adapted(plan.counts)
    return plan


def count_trainable_parameters(method: Method, plan: Plan) -> int:
    """Count the trainable parameters of a planned adapter, without heads and other fully fine-tuned modules.

    Args:
        method: Method that initializes the adapter. `peft:mica` freezes `B`.
        plan: Plan of the adapter.

    Returns:
        The number of trainable entries of `A`, of `B` unless the method freezes `B`, and of DoRA's magnitudes.
    """
    if isinstance(method, PeftInit) and method.freezes_B:
        return plan.trainable - sum(adapter.rank * adapter.projection.out_features for adapter in plan.adapters)
    return plan.trainable
