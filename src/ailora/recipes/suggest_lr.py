"""Learning rates for a policy's roles, from the curvature of the loss at its start and at plain LoRA's."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from ailora.errors import InputError
from ailora.inits import PRESETS, Policy
from ailora.lora import adapt
from ailora.model_path import resolve_model
from ailora.optim.curvature import Curvature, RateMultiple, curvature_by_role, rate_multiple
from ailora.optim.hessian import ALL
from ailora.recipes.config.method import Preset
from ailora.recipes.config.sections import RunConfig
from ailora.recipes.recipe import Recipe
from ailora.recipes.registry import make_recipe

#: Rows of a batch differ with the seed of the run; which rows curvature is measured on does not.
_ROWS_SEED = 20251008


@dataclass(frozen=True)
class RoleRate:
    """A proposal for the factors of one role.

    Attributes:
        curvature: of the loss in them at the policy's start.
        reference: at plain LoRA's start, on the same batches.
        multiple: of LoRA's good learning rate.
        rate: that rate times the multiple.
    """

    curvature: Curvature
    reference: Curvature
    multiple: RateMultiple
    rate: float

    @property
    def caution(self) -> str:
        """What speaks against the proposal; empty where nothing does."""
        error = math.hypot(self.curvature.error, self.reference.error)
        if math.isinf(error):
            return "not settled: measure on more batches"
        if abs(self.curvature.value - self.reference.value) <= error:
            return "as curved as LoRA's: says nothing about this start"
        return ""


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` proposes.

    Attributes:
        learning_rate: for `training.learning_rate`: the largest of the roles' rates.
        roles: role -> its proposal.
        seconds: what it took.
    """

    learning_rate: float
    roles: dict[str, RoleRate]
    seconds: float

    @property
    def multipliers(self) -> dict[str, float]:
        """For `adapter.learning_rates`: each role's share of `learning_rate`."""
        return {role: float(f"{each.rate / self.learning_rate:.2g}") for role, each in self.roles.items()}


def suggest(config: RunConfig, lora_rate: float, *, batches: int = 4, rows: int = 16) -> Suggestion:
    """Propose learning rates for the policy of a configuration.

    Args:
        config: the run that the rates are for.
        lora_rate: a learning rate that is good for plain LoRA with the same ranks on the same task.
        batches: how many batches the curvature is averaged over.
        rows: rows of each.

    Raises:
        InputError: a policy without an adapter or not of ours, bad numbers, bad data.
        ModelError: the model cannot be adapted as asked, or has no second derivatives.
    """
    method = config.adapter.method
    if not isinstance(method, Preset):
        raise InputError(f"rates are suggested for policies of ours, not for adapter.policy {method}")
    if not lora_rate > 0 or batches < 2 or rows < 1:
        raise InputError(f"needed: a rate above 0, 2 batches or more, rows; got {lora_rate}, {batches}, {rows}")
    started = time.perf_counter()
    # Quantized weights have no second derivatives.
    recipe = make_recipe(config.model_copy(update={"quantization": None}))
    sample = _sample_batches(recipe, batches, rows)
    curvatures = _measure_curvatures(recipe, method.policy, sample)
    references = _measure_curvatures(recipe, PRESETS["lora"], sample)
    roles = {}
    for role in [key for key in curvatures if key != ALL]:
        multiple = rate_multiple(curvatures[role], references[role])
        roles[role] = RoleRate(curvatures[role], references[role], multiple, lora_rate * multiple.value)
    return Suggestion(max(each.rate for each in roles.values()), roles, time.perf_counter() - started)


def _measure_curvatures(
    recipe: Recipe[RunConfig], policy: Policy, sample: list[dict[str, Tensor]]
) -> dict[str, Curvature]:
    """Measure the curvature at the start of a policy; one model is in memory at a time."""
    config: RunConfig = recipe.config
    set_seed(config.training["seed"])
    options = config.adapter.plan_options() | {"form": "anchored", "dropout": 0.0}
    base: Any = recipe.load_model(resolve_model(config.model))
    model = adapt(base.float(), policy, **options, task_type=config.task_type)
    model.to(torch.accelerator.current_accelerator() or "cpu")
    device = next(model.parameters()).device
    on_device = [{key: value.to(device) for key, value in batch.items()} for batch in sample]
    losses = [partial(_loss, model, batch) for batch in on_device]
    return curvature_by_role(model, losses, seed=config.training["seed"])


def _loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def _sample_batches(recipe: Recipe[RunConfig], batches: int, rows: int) -> list[dict[str, Tensor]]:
    """Draw batches of the training data."""
    dataset = recipe.datasets["train"]
    if len(dataset) < batches * rows:
        raise InputError(f"{batches} batches of {rows} rows need more than the {len(dataset)} rows of training data")
    chosen = random.Random(_ROWS_SEED).sample(range(len(dataset)), batches * rows)
    starts = range(0, len(chosen), rows)
    return [recipe.collate([dataset[i] for i in chosen[start : start + rows]]) for start in starts]
