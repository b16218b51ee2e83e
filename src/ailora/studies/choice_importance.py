"""Importance of choices: the share of the variance between results explained by each choice.

A choice is a hyperparameter that differs between the results of a study or a search, such as the method, the learning
rate or the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

from ailora.formatting import format_percent, is_finite
from ailora.studies.statistics import ROUNDING

#: Fewer results than this cannot tell the choices apart.
_MIN_RESULTS = 8
#: A forest on more results takes a second, and its shares differ little from those of a sample of this size.
_MAX_RESULTS = 100
#: Number of bootstrap resamples for the intervals.
_RESAMPLES = 20
#: With Optuna's default of 64 trees, the 21 forests (all results and 20 resamples) on 100 results take 15 s instead of
#: 3 s.
_TREES = 16
#: Quantiles over resamples at the ends of the 80 % intervals.
_QUANTILES = (0.1, 0.9)
_SEED = 0

IMPORTANCE_TITLE = "Which choices mattered"
IMPORTANCE_COLUMNS = ("choice", "share", "from", "to")
IMPORTANCE_NOTE = (
    "Share of the variance that a choice explains by itself (functional ANOVA), with an 80 % interval over resampled "
    "results. The rest is due to combinations of choices."
)


@dataclass(frozen=True)
class Importance:
    """Share of the variance between results explained by a choice alone.

    Attributes:
        name: Name of the choice.
        share: Share of the variance, between 0 and 1.
        low, high: Ends of the 80 % interval over results resampled with replacement.
    """

    name: str
    share: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Importance | None:
        """Read plain data of `to_dict`, perhaps damaged; None if a field is missing or not a finite number."""
        numbers = [data.get(name) for name in ("share", "low", "high")]
        finite = [number for number in numbers if is_finite(number)]
        return cls(str(data.get("name")), *finite) if len(finite) == len(numbers) else None


def measure_importance(settings: Sequence[Mapping[str, float | str]], values: Sequence[float]) -> list[Importance]:
    """Measure the importance of each choice by functional ANOVA of a random forest (Hutter et al. 2014).

    Args:
        settings: For each result, name of a choice -> its value; numbers are learning rates.
        values: Results, a number for each of `settings`; values that are not finite are left out.

    Returns:
        The choices with more than a single value, the most important first. Empty if there are fewer than eight
        results, or if all are equal up to rounding.
    """
    generator = np.random.default_rng(_SEED)
    indices = [i for i, value in enumerate(values) if math.isfinite(value)]
    if len(indices) > _MAX_RESULTS:
        indices = sorted(generator.choice(indices, _MAX_RESULTS, replace=False))
    settings, values = [settings[i] for i in indices], [values[i] for i in indices]
    if len(values) < _MIN_RESULTS or _are_equal(values):
        return []
    distributions = {name: _build_distribution([s[name] for s in settings]) for name in settings[0]}
    distributions = {name: d for name, d in distributions.items() if not d.single()}
    shares = _compute_shares(settings, values, distributions)
    resampled_shares: list[dict[str, float]] = []
    # With few results, a forest fits noise too: the spread over resamples shows how much.
    for _ in range(_RESAMPLES):
        drawn_indices = generator.integers(len(values), size=len(values))
        drawn_values = [values[i] for i in drawn_indices]
        if not _are_equal(drawn_values):
            drawn_settings = [settings[i] for i in drawn_indices]
            resampled_shares.append(_compute_shares(drawn_settings, drawn_values, distributions))
    importances: list[Importance] = []
    for name, share in shares.items():
        low, high = np.quantile([sample[name] for sample in resampled_shares], _QUANTILES)
        importances.append(Importance(name, share, min(share, float(low)), max(share, float(high))))
    return sorted(importances, key=lambda importance: -importance.share)


def describe_importance(importances: Sequence[Importance], differences: str) -> str:
    """Describe the importance of each choice in a sentence.

    Args:
        importances: From `measure_importance`, not empty.
        differences: The explained differences, such as `the differences at step 10`.
    """
    shares = [
        f"{importance.name} {format_percent(importance.share)} "
        f"({format_percent(importance.low)} to {format_percent(importance.high)})"
        for importance in importances
    ]
    return f"Explained share of {differences}: {', '.join(shares)}."


def importance_rows(importances: Sequence[Importance]) -> list[tuple[str, ...]]:
    """Format importances as rows with the columns of `IMPORTANCE_COLUMNS`."""
    return [
        (importance.name, *map(format_percent, (importance.share, importance.low, importance.high)))
        for importance in importances
    ]


def _are_equal(values: Sequence[float]) -> bool:
    """Return whether values differ at most by rounding."""
    return max(values) - min(values) <= ROUNDING * max(map(abs, values))


def _build_distribution(values: Sequence[float | str]) -> BaseDistribution:
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) == len(values):
        # Numbers are learning rates, and these differ by factors.
        return FloatDistribution(min(numbers), max(numbers), log=True)
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _compute_shares(
    settings: Sequence[Mapping[str, float | str]],
    values: Sequence[float],
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, float]:
    """Compute the share of the variance explained by each choice alone."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna's evaluator takes a study; this study stays in memory.
    study = optuna.create_study()
    # Optuna computes a variance as the mean square minus the squared mean: without standardization, rounding would hide
    # small differences.
    standardized = (np.array(values) - np.mean(values)) / np.std(values)
    for setting, value in zip(settings, standardized.tolist(), strict=True):
        params = {name: setting[name] for name in distributions}
        study.add_trial(create_trial(params=params, distributions=dict(distributions), value=value))
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED)
    shares = evaluator.evaluate(study, params=list(distributions))
    return {name: float(shares[name]) for name in distributions}
