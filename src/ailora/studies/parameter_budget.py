"""Match the trainable parameters of methods: scale ranks to the baseline's number of parameters."""

from __future__ import annotations

import functools

from transformers import PreTrainedModel

from ailora.errors import InputError
from ailora.model_loading import load_on_meta
from ailora.plan.adapter_plan import Plan
from ailora.plan.task_type import TaskType
from ailora.recipes.baselines.peft_inits import validate_options
from ailora.recipes.config.method import CustomFunction, FullFineTuning, PeftInit
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.setup import count_trainable_parameters, plan_adapter


def match_trainable_parameters(config: RunConfig, baseline: RunConfig) -> RunConfig:
    """Scale a configuration's rank to the baseline's number of trainable parameters.

    Heads and other modules trained in full are the same in both methods, and are not counted.

    Args:
        config: Configuration of a method.
        baseline: Configuration of the baseline.

    Returns:
        The configuration with the scaled rank; unchanged if either method is full fine-tuning.

    Raises:
        InputError: The method's adapter is not planned, PEFT's init refuses the scaled rank, or the model has no
            configuration.
        ModelError: The model cannot be adapted with these settings, or not with so large a rank.
    """
    if isinstance(config.adapter.method, FullFineTuning) or isinstance(baseline.adapter.method, FullFineTuning):
        return config
    rank, plan = config.adapter.rank, _plan(config)
    # The number of DoRA's magnitudes does not depend on the rank: only the factors are scaled.
    budget = count_trainable(baseline) - plan.magnitudes
    factor_parameters = count_trainable_parameters(config.adapter.method, plan) - plan.magnitudes
    # A scaled rank below 0.5 would round to 0, but a rank is at least 1.
    if isinstance(rank, dict):
        scaled = {key: max(1, round(value * budget / factor_parameters)) for key, value in rank.items()}
    else:
        scaled = max(1, round(rank * budget / factor_parameters))
    matched = config.model_copy(update={"adapter": config.adapter.model_copy(update={"rank": scaled})})
    # Without these checks, a rank that is too large for a weight or refused by PEFT's init would fail in every trial.
    if isinstance(method := matched.adapter.method, PeftInit):
        validate_options(method, matched.adapter)
    count_trainable(matched)
    return matched


def count_trainable(config: RunConfig) -> int:
    """Count the trainable parameters of a planned adapter.

    Args:
        config: Configuration of a run.

    Returns:
        The number of parameters, without heads and other modules trained in full.

    Raises:
        InputError: The method is a user function, or the adapter is not planned.
        ModelError: The model cannot be adapted as configured.
    """
    return count_trainable_parameters(config.adapter.method, _plan(config))


def _plan(config: RunConfig) -> Plan:
    """Plan the adapter of a run on the meta device.

    Raises:
        InputError, ModelError: See `count_trainable`.
    """
    if isinstance(config.adapter.method, CustomFunction):
        raise InputError(
            f"match_parameters: the number of parameters that the function {config.adapter.policy} trains is unknown"
        )
    return plan_adapter(config, meta_model(config.model, config.task_type))


@functools.lru_cache(maxsize=8)
def meta_model(model: str, task_type: TaskType) -> PreTrainedModel:
    """Load a model on the meta device, cached for all methods.

    Args:
        model: Hub id, local folder, or `builtin:minilm`.
        task_type: Task type of the recipe.
    """
    return load_on_meta(model, task_type)
