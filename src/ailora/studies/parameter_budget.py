"""Equal numbers of trained parameters: the rank at which a method trains about as many as the baseline."""

from __future__ import annotations

import functools

from transformers import PreTrainedModel

from ailora.errors import InputError
from ailora.model_loading import load_on_meta
from ailora.plan.task_type import TaskType
from ailora.recipes.config.method import CustomFunction, FullFineTuning
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.fit import plan_for


def matched(config: RunConfig, baseline: RunConfig) -> RunConfig:
    """A configuration whose rank is scaled to the baseline's number of trained parameters; full fine-tuning as it is.

    Heads and other modules that are trained whole are the same in both and do not count.

    Raises:
        InputError: a method whose adapter is not planned, or a model without a configuration.
        ModelError: the model cannot be adapted as asked, or not with so large a rank.
    """
    if isinstance(config.adapter.method, FullFineTuning) or isinstance(baseline.adapter.method, FullFineTuning):
        return config
    rank = config.adapter.rank
    budget, own = _trained(baseline), _trained(config)
    scaled = {
        key: max(1, round(one * budget / own))
        for key, one in (rank.items() if isinstance(rank, dict) else [("", rank)])
    }
    adapter = config.adapter.model_copy(update={"rank": scaled if isinstance(rank, dict) else scaled[""]})
    made = config.model_copy(update={"adapter": adapter})
    # A rank beyond a weight's is refused now and not in every trial.
    _trained(made)
    return made


def _trained(config: RunConfig) -> int:
    if isinstance(config.adapter.method, CustomFunction):
        raise InputError(
            f"match_parameters: nobody knows how many parameters the function {config.adapter.policy} trains"
        )
    return plan_for(config, _skeleton(config.model, config.task_type)).trainable


@functools.lru_cache(maxsize=8)
def _skeleton(model: str, task_type: TaskType) -> PreTrainedModel:
    return load_on_meta(model, task_type)
