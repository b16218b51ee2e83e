"""Result of a search: its candidates, the certainty of the result, and the importance of each choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ailora.formatting import format_number, join_names, pluralize
from ailora.studies.choice_importance import Importance, describe_importance, measure_importance
from ailora.tune.candidates import Candidate
from ailora.tune.halving import Rung, SearchProgress
from ailora.tune.search_space import RANK, ROLES, describe_roles
from ailora.tune.tune_design import TuneDesign

#: Maximum number of runners-up in the sentence on certainty.
_MAX_RUNNERS_UP = 3


@dataclass(frozen=True)
class CandidateRecord:
    """Record of a candidate.

    Attributes:
        label: Settings for a reader, from `SearchSpace.describe`.
        label_with_rank: Settings for a reader, from `SearchSpace.describe_with_rank`.
        number: Position in the order of the search.
        policy: Value of `adapter.policy`.
        roles: Entry of `tune.roles`.
        rank: Value of `adapter.rank`, scaled so that all entries of `tune.roles` train the same number of parameters.
        learning_rate: Learning rate of the optimizer.
        trainable_parameters: Number of trainable parameters of the adapter.
        values: Last step of a rung -> value of the metric that ranked candidates there.
        dropped_at: Step after which the candidate was dropped; None for the winner.
        error: Error of the failed training; None without an error.
    """

    label: str
    label_with_rank: str
    number: int
    policy: str
    roles: str | list[str]
    rank: int | dict[str, int]
    learning_rate: float
    trainable_parameters: int
    values: dict[int, float]
    dropped_at: int | None
    error: str | None


@dataclass(frozen=True)
class TuneResult:
    """Result of a search.

    Attributes:
        goal: Metric on the validation split by which candidates were compared at the end of the run.
        budget: Budget in the configuration.
        cost_runs: Cost of the search in complete runs: training, evaluations and `suggest-lr`.
        total_steps: Number of steps of a full run.
        rungs: Last step and number of candidates of each rung.
        ranking_metrics: Last step of a rung -> metric on the validation split by which candidates were compared there.
        centers_origin: Sentences on how the centers of the ranges of learning rates were found.
        candidates: All candidates, the winner first, then ordered by their last rung and their place on it.
        importances: Importance of each choice at the end of the first rung.
        output: Folder of the finished run.
    """

    goal: str
    budget: str
    cost_runs: float
    total_steps: int
    rungs: list[tuple[int, int]]
    ranking_metrics: dict[int, str]
    centers_origin: str
    candidates: list[CandidateRecord]
    importances: list[Importance]
    output: str

    @property
    def winner(self) -> CandidateRecord:
        """The best candidate at the end of the schedule."""
        return self.candidates[0]

    @property
    def sentences(self) -> list[str]:
        """The winner, the certainty of the result, the importance of each choice, and the cost."""
        best = self.winner.values[self.total_steps]
        return [
            f"Best: {self.winner.label_with_rank}, validation {self.goal} {format_number(best)}.",
            *self._describe_certainty(),
            *self._describe_importance(),
            f"{pluralize(len(self.candidates), 'candidate')} at {self.cost_runs:.2g}x the cost of one run; the "
            f"budget was {self.budget}.",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert to the plain data of `tune.json`."""
        return {
            "goal": self.goal,
            "budget": self.budget,
            "cost_runs": self.cost_runs,
            "rungs": [
                {"step": step, "candidates": count, "metric": self.ranking_metrics[step]} for step, count in self.rungs
            ],
            "rates": self.centers_origin,
            "sentences": self.sentences,
            "importances": [importance.to_dict() for importance in self.importances],
            "candidates": [
                {
                    "number": candidate.number,
                    "policy": candidate.policy,
                    "roles": candidate.roles,
                    "rank": candidate.rank,
                    "learning_rate": candidate.learning_rate,
                    "trainable_parameters": candidate.trainable_parameters,
                    "values": {str(step): value for step, value in candidate.values.items()},
                    "dropped_at": candidate.dropped_at,
                    "error": candidate.error,
                }
                for candidate in self.candidates
            ],
        }

    def _describe_certainty(self) -> Iterator[str]:
        """Compare the winner with the runners-up, at the last step that several candidates reached."""
        # On the last rung, the winner may be alone.
        compared_steps = [step for step, _ in self.rungs if sum(step in c.values for c in self.candidates) > 1]
        if not compared_steps:
            yield "It was the only candidate. A larger budget, with a different output, compares several."
            return
        step = compared_steps[-1]
        runners_up = [c for c in self.candidates[1:] if step in c.values][:_MAX_RUNNERS_UP]
        metric = self.ranking_metrics[step]
        results = [
            f"{c.label} {_describe_difference(c.values[step] - self.winner.values[step], metric)}" for c in runners_up
        ]
        when = "At the end" if step == self.total_steps else f"At step {step:,} of {self.total_steps:,}"
        when += f", by {metric}" if metric != self.goal else ""
        yield (
            f"{when}, {join_names(results)}. Each has one seed: `ailora study` tests whether such differences are real."
        )

    def _describe_importance(self) -> Iterator[str]:
        if self.importances:
            step = self.rungs[0][0]
            compared = (
                f"the differences in {self.ranking_metrics[step]} at step {step:,}, where all candidates were compared"
            )
            yield describe_importance(self.importances, compared)


def _describe_difference(difference: float, metric: str) -> str:
    gain = -difference if metric == "loss" else difference
    if gain == 0:
        return "was as good"
    return f"was {format_number(abs(gain))} {'ahead' if gain > 0 else 'behind'}"


def build_result(design: TuneDesign, progress: SearchProgress, winner: Candidate) -> TuneResult:
    """Build the result of a search that has ended."""
    rungs = progress.rungs
    # Candidates with a later last rung come first, ordered by their place on it. Those without any score come last.
    order = dict.fromkeys(design.candidates, (0, 0))
    for rung_number, rung in enumerate(rungs, start=1):
        order |= {candidate: (-rung_number, place) for place, candidate in enumerate(rung.ranking)}
    ranked = sorted(design.candidates, key=lambda candidate: (order[candidate], candidate.number))
    records = [_build_record(candidate, design, rungs, winner) for candidate in ranked]
    first_scores = rungs[0].scores
    importances = measure_importance([_choices(candidate) for candidate in first_scores], [*first_scores.values()])
    total = design.total_steps
    trained_runs = sum(_trained_steps(record, rungs) for record in records) / total
    return TuneResult(
        goal=design.space.goal,
        budget=design.space.run.tune.budget,
        cost_runs=trained_runs + design.request.suggestion_runs,
        total_steps=total,
        rungs=[(rung.step, len(rung.trials)) for rung in rungs],
        ranking_metrics={rung.step: design.ranking_metric(rung.step) for rung in rungs},
        centers_origin=design.request.centers_origin,
        candidates=records,
        importances=importances,
        output=str(design.request.run_output),
    )


def _build_record(
    candidate: Candidate, design: TuneDesign, rungs: tuple[Rung, ...], winner: Candidate
) -> CandidateRecord:
    config = design.space.configs[candidate.condition]
    trials = {rung.step: rung.trials[candidate] for rung in rungs if candidate in rung.trials}
    results = {step: trial.result for step, trial in trials.items() if trial and trial.result}
    settings = candidate.condition, candidate.learning_rate
    return CandidateRecord(
        label=design.space.describe(*settings),
        label_with_rank=design.space.describe_with_rank(*settings),
        number=candidate.number,
        policy=candidate.condition.method,
        roles=candidate.condition.values[ROLES],
        rank=config.adapter.rank,
        learning_rate=candidate.learning_rate,
        trainable_parameters=design.space.trainable[candidate.condition],
        values={step: design.value(result, step) for step, result in results.items()},
        dropped_at=None if candidate == winner else max(trials),
        error=next((trial.error for trial in trials.values() if trial and trial.error), None),
    )


def _choices(candidate: Candidate) -> dict[str, float | str]:
    """Return the value of each choice, by display name."""
    values = candidate.condition.values
    return {
        "learning rate": candidate.learning_rate,
        "roles": describe_roles(values[ROLES]),
        "rank": str(values[RANK]),
        "init": candidate.condition.method,
    }


def _trained_steps(record: CandidateRecord, rungs: tuple[Rung, ...]) -> int:
    """Return the number of steps trained for a candidate; a failed rung counts in full."""
    return rungs[-1].step if record.dropped_at is None else record.dropped_at
