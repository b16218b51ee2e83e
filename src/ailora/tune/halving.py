"""Successive halving: which trials the results so far require, and which candidate wins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ailora.recipes.config.schema import RunConfig
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.running_trial import RunningTrial
from ailora.studies.trial import Status, Trial, TrialResult
from ailora.studies.trial_runner import run_in_subprocess
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import run_until_all_ended
from ailora.tune.candidates import Candidate
from ailora.tune.tune_design import TuneDesign

#: (configuration of a run, prefix to train) -> result
ExecutePrefix = Callable[[RunConfig, RunPrefix], TrialResult]


@dataclass(frozen=True)
class Rung:
    """State of a rung: a step up to which the remaining candidates are trained, and then compared.

    Attributes:
        step: Last step of the rung.
        trials: Candidate -> its trial; None until the trial is queued.
        scores: Candidate -> score of its completed trial; larger is better.
    """

    step: int
    trials: dict[Candidate, Trial | None]
    scores: dict[Candidate, float]

    @property
    def ended(self) -> bool:
        """Whether all trials have ended."""
        return all(trial is not None and trial.ended for trial in self.trials.values())

    @property
    def ranking(self) -> list[Candidate]:
        """Candidates with a score, best first. Equal scores are ordered by number."""
        return sorted(self.scores, key=lambda candidate: (-self.scores[candidate], candidate.number))


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a search.

    Attributes:
        rungs: Rungs that have begun.
        ended: Whether no trial is left to run.
    """

    rungs: tuple[Rung, ...]
    ended: bool

    @property
    def winner(self) -> Candidate | None:
        """The best candidate on the last rung; None while the search runs, or if all candidates failed."""
        return next(iter(self.rungs[-1].ranking), None) if self.ended else None


def find_progress(trials: Sequence[Trial], design: TuneDesign) -> SearchProgress:
    """Find the progress of a search from its trials.

    A rung begins when all trials on the previous rung have ended. The order in which workers end trials therefore does
    not change the candidates.

    Args:
        trials: Stored trials.
        design: Design of the search.

    Returns:
        The progress, computed by `halve`.
    """
    by_key = {trial.key: trial for trial in trials}
    return halve(
        design.candidates,
        design.rungs,
        find_trial=lambda candidate, step: by_key.get(design.keys.key(design.spec(candidate, step))),
        score=design.score,
    )


def halve(
    candidates: Sequence[Candidate],
    rungs: Sequence[tuple[int, int]],
    *,
    find_trial: Callable[[Candidate, int], Trial | None],
    score: Callable[[TrialResult, int], float],
) -> SearchProgress:
    """Apply successive halving to the results so far.

    Args:
        candidates: Candidates on the first rung.
        rungs: Last step and number of candidates of each rung.
        find_trial: Returns the trial that trains a candidate to a step, or None if it is not queued.
        score: Returns the score of a result at the last step of its rung; larger is better.

    Returns:
        The rungs that have begun. The search has ended after the last rung, or after a rung without any score.
    """
    begun: list[Rung] = []
    for step, count in rungs:
        trials = {candidate: find_trial(candidate, step) for candidate in candidates[:count]}
        results = {c: t.result for c, t in trials.items() if t and t.status is Status.COMPLETE and t.result}
        scores = {candidate: score(result, step) for candidate, result in results.items()}
        begun.append(Rung(step, trials, scores))
        if not begun[-1].ended:
            return SearchProgress(tuple(begun), ended=False)
        candidates = begun[-1].ranking
        if not candidates:
            break
    return SearchProgress(tuple(begun), ended=True)


def enqueue_next(storage: TrialStorage, design: TuneDesign) -> int:
    """Queue the trials required by the results so far.

    Returns:
        The number of newly queued trials.
    """
    rungs = find_progress(storage.trials(), design).rungs
    specs = [design.spec(candidate, rungs[-1].step) for candidate in rungs[-1].trials]
    count = storage.enqueue({design.keys.key(spec): spec for spec in specs})
    if count:
        # Checkpoints of all candidates would fill a disk before the search ends.
        dropped = {candidate for rung in rungs[:-1] for candidate in rung.trials} - rungs[-1].trials.keys()
        remove_checkpoints(design, dropped)
    return count


def remove_checkpoints(design: TuneDesign, candidates: set[Candidate]) -> None:
    """Remove the checkpoints of candidates that no later trial resumes. Configurations and logs are kept."""
    # All trials of a candidate share a folder, so the trial of the whole run (step None) stands for them.
    for candidate in candidates:
        folder = RunFolder(design.run_config(design.spec(candidate, None)).output)
        for path in (folder.checkpoints, folder.initial):
            shutil.rmtree(path, ignore_errors=True)


def execute_prefix(config: RunConfig, prefix: RunPrefix) -> TrialResult:
    """Train a prefix of a run in a separate process, and keep all files."""
    return run_in_subprocess(config, "all", prefix=prefix)


def work_on_search(storage: TrialStorage, design: TuneDesign, execute: ExecutePrefix = execute_prefix) -> int:
    """Run trials of a search until all trials of all workers have ended.

    Args:
        storage: Trials of the search.
        design: Design of the search.
        execute: Function that trains a prefix of a run.

    Returns:
        Number of trials ended by this worker.

    Raises:
        KeyboardInterrupt: The worker was interrupted; its trial returns to the queue.
    """

    def run(trial: RunningTrial) -> tuple[TrialResult, float]:
        prefix = design.prefix(trial.spec)
        result = execute(design.run_config(trial.spec), prefix)
        return result, design.score(result, prefix.step)

    return run_until_all_ended(storage, design.keys, lambda: enqueue_next(storage, design), run)
