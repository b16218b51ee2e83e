"""Centers of the learning rates of each choice, by the curvature of the loss at its start."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from ailora.errors import AiloraError
from ailora.inits import PRESETS
from ailora.recipes.config.method import Preset
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.suggest_lr import suggest
from ailora.tune.tune_design import ROLES, TuneChoices

#: Good rate of plain LoRA with alpha = rank, where the file has no `training.learning_rate`.
DEFAULT_LORA_RATE = 1e-3
_BATCHES, _ROWS, _PASSES = 2, 8, 13
#: Cost of a forward pass of a row = 1: a training step takes 3 per row; a pass over the Hessian 3, and 3 per role.
_PASS_COST = 3
#: Largest share of a run that suggestions may cost.
_MAX_COST_RUNS = 0.25
#: Curvature compares starts within a decade; beyond it, the rule is not tested.
_MAX_MULTIPLE = 10.0


@dataclass(frozen=True)
class RateCenters:
    """Centers of the learning rates of each choice.

    Attributes:
        centers: center of each choice, in their order.
        cost_runs: cost of measuring them, in full runs.
        seconds: duration of measuring them.
        origin: sentence that says where the centers come from.
    """

    centers: list[float]
    cost_runs: float
    seconds: float
    origin: str


def find_rate_centers(choices: TuneChoices, *, rows_trained: int, spare_runs: float) -> RateCenters:
    """Find the centers of the learning rates: those of `suggest-lr`, where it costs little beside a run.

    Args:
        choices: choices of the search.
        rows_trained: rows that a run trains on, counted each time.
        spare_runs: budget beyond one run, in full runs.

    Returns:
        The centers.
    """
    lora_rate = choices.run.training.get("learning_rate", DEFAULT_LORA_RATE)
    cost = _suggestion_cost(choices) / (_PASS_COST * rows_trained)
    if cost > min(_MAX_COST_RUNS, spare_runs):
        origin = f"Rates around {lora_rate:g} for all inits: the curvature of their losses would cost {cost:.2g} runs."
        return RateCenters([lora_rate] * len(choices.conditions), 0.0, 0.0, origin)
    started = time.perf_counter()
    multiples: dict[tuple[str, str], float] = {}
    centers: list[float] = []
    for condition, config in choices.configs.items():
        # The curvature of each factor hardly depends on the rank.
        key = (condition.method, str(condition.values[ROLES]))
        if key not in multiples:
            multiples[key] = _suggest_multiple(config)
        centers.append(lora_rate * multiples[key])
    origin = f"Rates around {lora_rate:g}, times the multiple for each init that the curvature of its loss suggests."
    return RateCenters(centers, cost, time.perf_counter() - started, origin)


def _suggestion_cost(choices: TuneChoices) -> float:
    """Return the cost of all suggestions, where a forward pass of a row costs 1."""
    measured = {
        (c.method, str(c.values[ROLES])): config for c, config in choices.configs.items() if _is_measured(config)
    }
    blocks = [len(config.adapter.roles or ()) + 1 for config in measured.values()]
    # Each suggestion measures plain LoRA's curvature too.
    return sum(2 * _PASSES * _BATCHES * _ROWS * _PASS_COST * (1 + n) for n in blocks)


def _is_measured(config: RunConfig) -> bool:
    method = config.adapter.method
    return isinstance(method, Preset) and method.policy != PRESETS["lora"]


def _suggest_multiple(config: RunConfig) -> float:
    """Suggest the multiple of plain LoRA's rate; 1 where the curvature says nothing."""
    if not _is_measured(config):
        return 1.0
    try:
        suggestion = suggest(config, 1.0, batches=_BATCHES, rows=_ROWS)
    except AiloraError:
        return 1.0
    logarithms = [math.log(role.multiple.value) for role in suggestion.roles.values() if not role.caution]
    multiple = math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else 1.0
    return min(max(multiple, 1 / _MAX_MULTIPLE), _MAX_MULTIPLE)
