"""Worker of a study: claims trials, runs them and records their results until all trials have ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from ailora.recipes.config.schema import RunConfig
from ailora.studies.comparison import compare
from ailora.studies.running_trial import RunningTrial
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Trial, TrialResult, TrialSpec
from ailora.studies.trial_keys import TrialKeys
from ailora.studies.trial_runner import ShouldContinue, TrialError, TrialPruned, run_in_subprocess
from ailora.studies.trial_storage import TrialStorage

#: (configuration of a run, part of the model to keep, pruning rule) -> result; see `run_in_subprocess`.
Execute = Callable[[RunConfig, str, ShouldContinue | None], TrialResult]
#: Interval between checks of a storage while other workers run its last trials.
_POLL_INTERVAL_S = 1.0


def work(storage: TrialStorage, design: StudyDesign, execute: Execute = run_in_subprocess) -> int:
    """Run trials of a study until all trials of all workers have ended.

    Args:
        storage: Trials of the study.
        design: Design of the study.
        execute: Function that runs a configuration.

    Returns:
        Number of trials ended by this worker.

    Raises:
        KeyboardInterrupt: The worker was interrupted; its trial returns to the queue.
    """

    def run(trial: RunningTrial) -> tuple[TrialResult, float]:
        rule = _pruning_rule(trial, storage, design)
        result = execute(design.run_config(trial.spec), design.config.keep, rule)
        score = design.score(trial.spec, result)
        if not math.isfinite(score):
            metric = design.metric(trial.spec.condition)
            raise TrialError(f"{metric} on the validation split is {result.metrics['validation'][metric]}")
        return result, score

    return run_until_all_ended(storage, design.keys, lambda: enqueue_missing_trials(storage, design), run)


def run_until_all_ended(
    storage: TrialStorage,
    keys: TrialKeys,
    enqueue_missing: Callable[[], int],
    run: Callable[[RunningTrial], tuple[TrialResult, float]],
) -> int:
    """Run the trials of a study or a search until all have ended, including those of other workers.

    Args:
        storage: Trials of a study or a search.
        keys: Keys of the study or search; other trials in the storage are not run.
        enqueue_missing: Queues the trials that the results so far require and the storage lacks; returns their number.
        run: Runs a trial, and returns its result and its score; a larger score is better.

    Returns:
        Number of trials ended by this worker.

    Raises:
        KeyboardInterrupt: The worker was interrupted; its trial returns to the queue.
    """
    count = 0
    while True:
        trial = storage.claim_next(keys)
        if trial is not None:
            _record(trial, run)
            count += 1
        elif enqueue_missing():
            continue
        elif any(not other.ended for other in keys.matching_trials(storage.trials())):
            # Other workers run the last trials. Wait for them: a worker may die, and a result may require more trials.
            time.sleep(_POLL_INTERVAL_S)
        else:
            return count


def enqueue_missing_trials(storage: TrialStorage, design: StudyDesign) -> int:
    """Queue the trials that the results so far require and the storage lacks; return the number of queued trials."""
    trials = design.keys.matching_trials(storage.trials())
    required = design.required_trials(trials)
    ended = {trial.key for trial in trials if trial.ended}
    if design.config.confirm_speed and ended.issuperset(map(design.keys.key, required)):
        required += time_to_loss_trials(trials, design)
    return storage.enqueue({design.keys.key(spec): spec for spec in required})


def time_to_loss_trials(trials: Sequence[Trial], design: StudyDesign) -> list[TrialSpec]:
    """List the runs that check whether methods really reach the baseline's final loss in fewer steps.

    Args:
        trials: Trials of the study, all ended.
        design: Design of the study.

    Returns:
        Specifications of runs whose schedule ends at the step where the method first reached the loss: the median of
        this step over seeds.
    """
    comparison = compare(trials, design, bootstrap=False)
    specs: list[TrialSpec] = []
    for condition, baseline_comparison in comparison.against_baseline.items():
        time_to_loss = baseline_comparison.time_to_loss
        best_rate = comparison.results[condition].search.best
        if time_to_loss is None or time_to_loss.confirmation_steps is None or best_rate is None:
            continue
        max_steps = time_to_loss.confirmation_steps
        specs += [TrialSpec(condition, best_rate, seed, max_steps) for seed in design.selection_seeds]
    return specs


def _record(trial: RunningTrial, run: Callable[[RunningTrial], tuple[TrialResult, float]]) -> None:
    with trial:
        try:
            result, score = run(trial)
        except KeyboardInterrupt:
            trial.requeue()
            raise
        except TrialPruned as pruned:
            trial.prune(str(pruned))
        except TrialError as error:
            trial.fail(str(error))
        else:
            trial.complete(result, score)


def _pruning_rule(trial: RunningTrial, storage: TrialStorage, design: StudyDesign) -> ShouldContinue | None:
    """Build the pruning rule, which compares a run with its peers: those with the same task, setting and seed.

    Returns None if pruning is off, and for all runs except those with the first seed and the full schedule.
    """
    spec = trial.spec
    if not design.config.pruning or spec.seed != design.selection_seeds[0] or spec.max_steps is not None:
        return None

    def is_peer(other: TrialSpec) -> bool:
        same_task = other.condition.task == spec.condition.task and other.condition.setting == spec.condition.setting
        # A run with `max_steps` confirms a speed and reports no losses.
        return same_task and other.seed == spec.seed and other.max_steps is None

    peers = {other.key for other in design.keys.matching_trials(storage.trials()) if is_peer(other.spec)}

    def should_continue(step: int, loss: float) -> bool:
        # The Optuna study maximizes its values, so the loss is negated.
        trial.report(step, -loss)
        return not trial.should_prune(peers)

    return should_continue
