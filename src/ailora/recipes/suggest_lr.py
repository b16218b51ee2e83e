"""Suggest learning rates by role, by comparing the loss curvature at a policy's init and at LoRA's init."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import set_seed

from ailora.errors import InputError
from ailora.inits import PRESETS, Policy
from ailora.lora import adapt
from ailora.model_loading import default_device
from ailora.model_path import resolve_model
from ailora.optim.curvature import Curvature, RateMultiple, curvature_by_role, rate_multiple
from ailora.optim.hessian import ALL
from ailora.recipes.config.method import AiloraPolicy
from ailora.recipes.config.sections import RunConfig
from ailora.recipes.recipe import Recipe
from ailora.recipes.registry import make_recipe

#: Independent of the run's seed, so that curvature is measured on the same rows for all runs.
_SAMPLE_SEED = 20251008


@dataclass(frozen=True)
class RoleRate:
    """Suggested learning rate of a role.

    Attributes:
        curvature: Loss curvature in the role's factors at the policy's init.
        reference: Loss curvature in these factors at plain LoRA's init, on the same batches.
        multiple: Suggested multiple of LoRA's learning rate.
        rate: Suggested learning rate.
    """

    curvature: Curvature
    reference: Curvature
    multiple: RateMultiple
    rate: float

    @property
    def caution(self) -> str:
        """Reason to doubt the suggestion; empty if there is none."""
        error = math.hypot(self.curvature.error, self.reference.error)
        if math.isinf(error):
            return "uncertain: measure on more batches"
        if abs(self.curvature.value - self.reference.value) <= error:
            return "within the error of LoRA's curvature: no evidence for a different rate"
        return ""


@dataclass(frozen=True)
class Suggestion:
    """Suggested learning rates of a run.

    Attributes:
        learning_rate: Value for `training.learning_rate`, the largest rate of all roles.
        roles: Suggestion for each role.
        seconds: Duration of the measurement.
    """

    learning_rate: float
    roles: dict[str, RoleRate]
    seconds: float

    @property
    def multipliers(self) -> dict[str, float]:
        """Value for `adapter.learning_rates`: the rate of each role / `learning_rate`, to two significant digits."""
        multiples = {role: role_rate.rate / self.learning_rate for role, role_rate in self.roles.items()}
        return {role: float(f"{multiple:.2g}") for role, multiple in multiples.items()}


def suggest(config: RunConfig, lora_rate: float, *, batches: int = 4, rows: int = 16) -> Suggestion:
    """Suggest learning rates for the policy of a configuration.

    Args:
        config: Configuration of the run.
        lora_rate: Well-tuned learning rate of plain LoRA with the same ranks, on the same task.
        batches: Number of batches for averaging the curvature, at least 2.
        rows: Rows per batch.

    Returns:
        The suggestion.

    Raises:
        InputError: The method is not a policy of ailora, an argument is out of range, or the data are invalid.
        ModelError: The model cannot be adapted as configured, or has no second derivatives.
    """
    method = config.adapter.method
    if not isinstance(method, AiloraPolicy):
        raise InputError(f"suggested rates require a policy of ailora, got adapter.policy {method}")
    if not 0 < lora_rate < math.inf or batches < 2 or rows < 1:
        raise InputError(
            f"expected a finite rate above 0, at least 2 batches and at least 1 row, got {lora_rate}, {batches} and "
            f"{rows}"
        )
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
    learning_rate = max(role_rate.rate for role_rate in roles.values())
    return Suggestion(learning_rate, roles, time.perf_counter() - started)


def _measure_curvatures(
    recipe: Recipe[RunConfig], policy: Policy, sample: list[dict[str, Tensor]]
) -> dict[str, Curvature]:
    """Measure the curvature of each role at the init of a policy."""
    # The model is a local variable, so it is freed before the model of the next policy is loaded.
    config: RunConfig = recipe.config
    # Both policies must get the same new head.
    set_seed(config.training["seed"])
    # In the anchored form, the roles of a fused weight share no parameters. Dropout would add noise to the curvature.
    options: dict[str, Any] = config.adapter.plan_options() | {"form": "anchored", "dropout": 0.0}
    base: Any = recipe.load_model(resolve_model(config.model))
    model = adapt(base.float(), policy, **options, task_type=config.task_type)
    model.to(default_device())
    device = next(model.parameters()).device
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in sample]
    losses = [partial(_compute_loss, model, batch) for batch in batches]
    return curvature_by_role(model, losses, seed=config.training["seed"])


def _compute_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def _sample_batches(recipe: Recipe[RunConfig], batches: int, rows: int) -> list[dict[str, Tensor]]:
    """Sample batches from the training data."""
    dataset = recipe.datasets["train"]
    if len(dataset) < batches * rows:
        raise InputError(
            f"expected at least {batches * rows} training rows for {batches} batches of {rows} rows, got {len(dataset)}"
        )
    indices = random.Random(_SAMPLE_SEED).sample(range(len(dataset)), batches * rows)
    starts = range(0, len(indices), rows)
    return [recipe.collate([dataset[i] for i in indices[start : start + rows]]) for start in starts]
