"""Centers of the automatic ranges of learning rates, shifted by the curvature of the loss at each init."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from ailora.errors import AiloraError, ModelError
from ailora.formatting import format_value
from ailora.inits import PRESETS
from ailora.recipes.config.method import AiloraPolicy
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.suggest_lr import suggest
from ailora.tune.search_space import ROLES, SearchSpace

#: Center for plain LoRA with alpha = rank if the file has no `training.learning_rate`.
DEFAULT_LORA_RATE = 1e-3
#: Batches, and rows per batch, for the measurements of `suggest-lr`, which needs at least two batches.
_BATCHES, _ROWS = 2, 8
#: Maximum number of passes over the batches by `curvature_by_role`: 12 Lanczos steps, and a final pass.
_PASSES = 13
#: Cost of a forward and backward pass per row, in forward passes. A training step costs this once. A pass over the
#: batches costs this once, and once more for each block of the Hessian.
_PASS_COST = 3
#: Maximum cost of all suggestions together, in complete runs.
_MAX_COST_RUNS = 0.25
#: `suggest-lr` is tested for multiples between 1/10 and 10.
_MAX_MULTIPLE = 10.0


@dataclass(frozen=True)
class RateCenters:
    """Centers of the ranges of learning rates.

    Attributes:
        centers: Center for each condition, in the order of `SearchSpace.conditions`.
        cost_runs: Cost of the measurement, in complete runs.
        seconds: Duration of the measurement.
        origin: Sentences on the origin of the centers.
    """

    centers: list[float]
    cost_runs: float
    seconds: float
    origin: str


def find_rate_centers(space: SearchSpace, *, rows_trained: int, spare_runs: float) -> RateCenters:
    """Find the centers of the ranges of learning rates, by `suggest-lr` if it costs little compared with a run.

    Args:
        space: Search space.
        rows_trained: Number of data rows in a full run; a row counts once per epoch.
        spare_runs: Budget beyond one run, in complete runs.

    Returns:
        The centers.
    """
    lora_rate = space.run.training.get("learning_rate", DEFAULT_LORA_RATE)
    cost_runs = _suggestion_cost(space) / (_PASS_COST * rows_trained)
    if cost_runs > min(_MAX_COST_RUNS, spare_runs):
        origin = f"Learning rates around {lora_rate:g} for all inits: `suggest-lr` would cost {cost_runs:.2g} runs."
        return RateCenters([lora_rate] * len(space.conditions), 0.0, 0.0, origin)
    started = time.perf_counter()
    multiples: dict[tuple[str, str], float] = {}
    failures: dict[str, str] = {}
    centers: list[float] = []
    for condition, config in space.configs.items():
        roles = condition.values[ROLES]
        # The curvature of a factor hardly depends on the rank.
        key = (condition.method, str(roles))
        if key not in multiples:
            try:
                multiples[key] = _suggest_multiple(config)
            except AiloraError as error:
                multiples[key] = 1.0
                failures[f"{condition.method} on {format_value(roles)}"] = str(error)
        centers.append(lora_rate * multiples[key])
    is_shifted = any(multiple != 1.0 for multiple in multiples.values())
    shift = ", shifted for each init by `suggest-lr`" if is_shifted else ""
    sentences = [f"Learning rates around {lora_rate:g}{shift}."]
    sentences += [f"Not shifted for {name}: {reason.rstrip('.')}." for name, reason in failures.items()]
    return RateCenters(centers, cost_runs, time.perf_counter() - started, " ".join(sentences))


def _suggestion_cost(space: SearchSpace) -> float:
    """Estimate the cost of all suggestions, in forward passes of a row."""
    measured = {(c.method, str(c.values[ROLES])): config for c, config in space.configs.items() if _is_measured(config)}
    # The Hessian has a block for each role, and at most one more, for all factors together.
    block_counts = [len(config.adapter.roles or ()) + 1 for config in measured.values()]
    # Factor 2: each suggestion also measures the curvature at plain LoRA's init.
    return sum(2 * _PASSES * _BATCHES * _ROWS * _PASS_COST * (1 + count) for count in block_counts)


def _is_measured(config: RunConfig) -> bool:
    """Return whether `suggest-lr` applies: to policies of ailora except plain LoRA, whose multiple is 1."""
    method = config.adapter.method
    return isinstance(method, AiloraPolicy) and method.policy != PRESETS["lora"]


def _suggest_multiple(config: RunConfig) -> float:
    """Suggest a multiple of plain LoRA's rate; 1 for plain LoRA and for inits that `suggest-lr` does not know.

    Raises:
        AiloraError: The curvature cannot be measured, or its errors are too large for a multiple.
    """
    if not _is_measured(config):
        return 1.0
    suggestion = suggest(config, lora_rate=1.0, batches=_BATCHES, rows=_ROWS)
    logarithms = [math.log(role.multiple.value) for role in suggestion.roles.values() if not role.caution]
    if not logarithms:
        raise ModelError("`suggest-lr` is uncertain for all roles")
    # Geometric mean over the roles.
    multiple = math.exp(math.fsum(logarithms) / len(logarithms))
    return min(max(multiple, 1 / _MAX_MULTIPLE), _MAX_MULTIPLE)
