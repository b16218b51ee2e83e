"""Looks of a study: the seeds needed by each condition, and the verdicts at the latest look.

A look is a planned number of seeds at which the study is judged: an interim analysis of a group sequential test.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ailora.studies.sequential_tests import LookSchedule
from ailora.studies.verdicts import Judgement, PairedScores, judge

#: Type of a condition: a method on a task at a setting of the grid.
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class PlannedComparison(Generic[K]):
    """Settings for comparing a method's condition with the baseline's condition.

    Attributes:
        baseline: The baseline's condition.
        margin: Largest difference of equivalent methods, in the metric's unit or as a share of the baseline's mean at
            the first look; None if equivalence is not judged.
        margin_is_share: Whether the margin is a share.
        larger_is_better: Whether larger scores are better.
    """

    baseline: K
    margin: float | None
    margin_is_share: bool
    larger_is_better: bool

    def pair(
        self, scores: Mapping[int, float], baseline: Mapping[int, float], seeds: Sequence[int], *, first_look: int
    ) -> PairedScores:
        """Pair the scores of a method and of the baseline at the seeds of a look.

        Args:
            scores: Seed -> score of the method; NaN for a failed run.
            baseline: Seed -> score of the baseline; NaN for a failed run.
            seeds: Seeds of the look.
            first_look: Number of seeds at the first look.

        Returns:
            The paired scores, with the margin in the metric's unit.
        """
        margin = self.margin
        if margin is not None and self.margin_is_share:
            # Later looks must not move the margin.
            baseline_scores = [score for seed in seeds[:first_look] if math.isfinite(score := baseline[seed])]
            margin = margin * abs(math.fsum(baseline_scores) / len(baseline_scores)) if baseline_scores else None
        # A margin of 0, as a share of a mean of 0, becomes None: equivalence is then not judged.
        return PairedScores.from_scores(
            scores, baseline, seeds, margin=margin or None, larger_is_better=self.larger_is_better
        )


@dataclass(frozen=True)
class LookState(Generic[K]):
    """State of the looks.

    Attributes:
        n_seeds: Condition -> number of seeds required so far at its best rate.
        judgements: Condition of a method -> judgement at its latest look. Conditions before their first look, and
            those without a score, are left out.
        n_pending: Number of comparisons before their first look.
    """

    n_seeds: dict[K, int] = field(default_factory=dict)
    judgements: dict[K, Judgement] = field(default_factory=dict)
    n_pending: int = 0


def plan_looks(
    comparisons: Mapping[K, PlannedComparison[K]],
    scores: Mapping[K, Mapping[int, float] | None],
    seeds: Sequence[int],
    schedule: LookSchedule,
) -> LookState[K]:
    """Judge the comparisons at every look, and plan the seeds of the next look for undecided comparisons.

    A look is planned once all undecided comparisons have reached the previous look. The plan therefore depends on the
    ended runs only, and not on the order in which they ended.

    Args:
        comparisons: Condition of a method -> its comparison.
        scores: Condition -> seed -> score of an ended run at the condition's best rate, NaN for a failed run. A
            condition has None while its best rate is unknown, and an empty mapping if every rate failed.
        seeds: All seeds, in the order in which they run.
        schedule: Numbers of seeds at the looks.

    Returns:
        The required seeds, and the judgements.
    """
    n_seeds = dict.fromkeys(scores, schedule.counts[0])
    # Condition of a method -> conditions of the method and of the baseline.
    sides = {key: (key, comparison.baseline) for key, comparison in comparisons.items()}
    # A comparison is left out if every rate of its method or baseline failed: correcting for it would only cost power.
    active = [key for key in comparisons if all(scores[side] != {} for side in sides[key])]
    pairs: dict[K, PairedScores] = {}
    state = LookState(n_seeds)
    for n in schedule.counts:
        for key in active:
            n_seeds |= {side: max(n, n_seeds[side]) for side in sides[key]}
        reached = [key for key in active if all(_has_ended(scores[side], seeds[:n]) for side in sides[key])]
        for key in reached:
            method, baseline = (scores[side] or {} for side in sides[key])
            pairs[key] = comparisons[key].pair(method, baseline, seeds[:n], first_look=schedule.counts[0])
        n_pending = sum(key not in pairs for key in active)
        state = LookState(n_seeds, judge(pairs, schedule, n_pending=n_pending), n_pending)
        if len(reached) < len(active):
            break
        active = [key for key in active if not state.judgements[key].is_final]
    return state


def _has_ended(scores: Mapping[int, float] | None, seeds: Sequence[int]) -> bool:
    return scores is not None and all(seed in scores for seed in seeds)
