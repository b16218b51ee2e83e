"""Rungs of successive halving: how many candidates train how far, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ailora.errors import InputError

#: Half of the candidates advances to the next rung.
REDUCTION = 2
#: With four rungs, the first ends after an eighth of the schedule. A later first rung with fewer candidates chose
#: better on one task and worse on another; so did a reduction to a third, as in Hyperband (arXiv 1603.06560). See
#: `docs/LOG.md`.
_MAX_RUNGS = 4


@dataclass(frozen=True)
class RungPlan:
    """Rungs of a search: prefixes of the schedule, with fewer candidates on each.

    Attributes:
        steps: Last step of each rung, ascending; the last rung ends with the run.
        counts: Number of candidates that train to the end of each rung.
        overhead_runs: Cost of starting a candidate's process on a rung, in complete runs.
    """

    steps: tuple[int, ...]
    counts: tuple[int, ...]
    overhead_runs: float = 0.0

    @property
    def cost_runs(self) -> float:
        """Cost in complete runs. A part of a run costs its share of the steps, which includes its evaluations."""
        total = self.steps[-1]
        rung_lengths = [stop - start for start, stop in pairwise((0, *self.steps))]
        pairs = zip(self.counts, rung_lengths, strict=True)
        return sum(count * (length / total + self.overhead_runs) for count, length in pairs)

    @classmethod
    def within(
        cls, evaluation_steps: Sequence[int], budget_runs: float, *, max_candidates: int, overhead_runs: float = 0.0
    ) -> RungPlan:
        """Plan the search with the most candidates within a budget.

        Args:
            evaluation_steps: Steps after which a run evaluates, ascending; the last is the run's last step.
            budget_runs: Budget in complete runs.
            max_candidates: Upper limit for the number of candidates.
            overhead_runs: Cost of starting a candidate's process on a rung, in complete runs.

        Returns:
            The plan, with at least one candidate.

        Raises:
            InputError: The budget is below the cost of one candidate.
        """
        steps = rung_steps(evaluation_steps)
        # The tolerance covers rounding in sums of shares.
        max_cost_runs = budget_runs * (1 + 1e-9)
        plans = [cls(steps, _counts(1, len(steps)), overhead_runs)]
        if plans[0].cost_runs > max_cost_runs:
            raise InputError(
                f"the budget is {budget_runs:.2g} of a run, and one candidate costs {plans[0].cost_runs:.2g}: raise "
                "the budget to the cost of a candidate"
            )
        # The cost never falls with more candidates, so the first plan above the budget ends the loop.
        for count in range(2, max_candidates + 1):
            plan = cls(steps, _counts(count, len(steps)), overhead_runs)
            if plan.cost_runs > max_cost_runs:
                break
            plans.append(plan)
        return plans[-1]


def ranking_metric(goal: str, step: int, total_steps: int) -> str:
    """Return the metric that ranks candidates after a step: the goal at the end of the run, the loss before."""
    # On runs of SST-2 with MiniLM, accuracy stays at chance while the loss already falls: rungs ranked by accuracy
    # chose worse settings than a random search (docs/LOG.md).
    return goal if step == total_steps else "loss"


def rung_steps(evaluation_steps: Sequence[int]) -> tuple[int, ...]:
    """Choose the evaluations nearest to an eighth, a quarter and a half of a run, and the last evaluation.

    Args:
        evaluation_steps: Steps after which a run evaluates, ascending.

    Returns:
        The last step of each rung, ascending.
    """
    total = evaluation_steps[-1]
    targets = [total / REDUCTION**n_reductions for n_reductions in range(_MAX_RUNGS)]
    # A set, because an evaluation may be the nearest to several targets.
    nearest_steps = {min(evaluation_steps, key=lambda step, t=target: abs(step - t)) for target in targets}
    return tuple(sorted(nearest_steps))


def _counts(n_candidates: int, n_rungs: int) -> tuple[int, ...]:
    """Return the number of candidates on each rung."""
    return tuple(max(1, n_candidates // REDUCTION**rung) for rung in range(n_rungs))
