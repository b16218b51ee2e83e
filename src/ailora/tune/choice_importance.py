"""Importance of each choice: the share of the differences between candidates that it explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

#: Fewer candidates than this cannot tell the choices apart.
_MIN_CANDIDATES = 8
_RESAMPLES = 20
_TREES = 32
#: Ends of the intervals over resamples, which cover 80 %.
_QUANTILES = (0.1, 0.9)
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """Share of the variance between candidates that a choice explains by itself.

    Attributes:
        name: name of the choice.
        share: share of the variance, between 0 and 1.
        low, high: 80 % interval over candidates that are resampled with replacement.
    """

    name: str
    share: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data."""
        return asdict(self)


def measure_importance(settings: Sequence[Mapping[str, float | str]], values: Sequence[float]) -> list[Importance]:
    """Measure the importance of each choice by functional ANOVA of a random forest (Hutter et al. 2014).

    Args:
        settings: choices of each candidate by name; numbers are learning rates.
        values: result of each candidate, as many as settings.

    Returns:
        The choices by importance, the largest first. Empty if there are fewer than eight candidates, or if all have
        the same result.
    """
    finite = [i for i, value in enumerate(values) if math.isfinite(value)]
    settings, values = [settings[i] for i in finite], [values[i] for i in finite]
    if len(values) < _MIN_CANDIDATES or min(values) == max(values):
        return []
    distributions = {name: _distribution([s[name] for s in settings]) for name in settings[0]}
    # A choice without a choice explains nothing.
    distributions = {name: d for name, d in distributions.items() if not d.single()}
    shares = _explained(settings, values, distributions)
    resampled: list[dict[str, float]] = []
    generator = np.random.default_rng(_SEED)
    for _ in range(_RESAMPLES):
        rows = generator.integers(len(values), size=len(values))
        drawn = [values[i] for i in rows]
        if min(drawn) < max(drawn):
            resampled.append(_explained([settings[i] for i in rows], drawn, distributions))
    importances: list[Importance] = []
    for name, share in shares.items():
        low, high = np.quantile([sample[name] for sample in resampled], _QUANTILES)
        importances.append(Importance(name, share, min(share, float(low)), max(share, float(high))))
    return sorted(importances, key=lambda importance: -importance.share)


def _distribution(values: Sequence[float | str]) -> BaseDistribution:
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) == len(values):
        return FloatDistribution(min(numbers), max(numbers), log=True)
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _explained(
    settings: Sequence[Mapping[str, float | str]],
    values: Sequence[float],
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, float]:
    """Return the share of the variance that each choice explains by itself."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for setting, value in zip(settings, values, strict=True):
        params = {name: setting[name] for name in distributions}
        study.add_trial(create_trial(params=params, distributions=dict(distributions), value=value))
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED)
    shares = evaluator.evaluate(study, params=list(distributions))
    return {name: float(shares[name]) for name in distributions}
