"""Select the trials of a study to report, with notes on trials left out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from ailora.formatting import pluralize
from ailora.library_versions import library_versions
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Status, Trial


@dataclass(frozen=True)
class TrialSelection:
    """Trials to report.

    Attributes:
        trials: A trial for each specification.
        notes: Sentences on trials left out.
    """

    trials: list[Trial]
    notes: list[str]


def select_trials(trials: Iterable[Trial], design: StudyDesign) -> TrialSelection:
    """Select the trials that match the study and the installed versions.

    Args:
        trials: All trials of the storage.
        design: The design of the study.

    Returns:
        The selected trials. If none of them is complete, but trials of other versions or paths are: the newest of these
        for each specification.
    """
    stored = list(trials)
    selected = design.keys.matching_trials(stored)
    selected_keys = {trial.key for trial in selected}
    unselected = [trial for trial in stored if trial.key not in selected_keys]
    conditions, seeds = set(design.conditions), set(design.seeds)
    # Trials of the current study file, but of other library versions or paths.
    outdated = [trial for trial in unselected if trial.spec.condition in conditions and trial.spec.seed in seeds]
    # The trials are in the order of the queue: the newest of each specification replaces the earlier.
    newest_outdated = {trial.spec: trial for trial in outdated}
    notes = []
    # The study file may have lost a method, a task or a seed since the trials ran.
    if n_removed := len(unselected) - len(outdated):
        trials_text = pluralize(n_removed, "trial in the storage belongs", "trials in the storage belong")
        notes.append(f"{trials_text} to no condition or seed of the current study file.")
    if _any_complete(newest_outdated.values()) and not _any_complete(selected):
        notes.append(
            "No trial ran with the installed versions and these paths: the page shows the trials of other versions or "
            f"paths, which `ailora study run` would run again. Installed: {_format_versions()}."
        )
        selected = list(newest_outdated.values())
    elif newest_outdated:
        left_out = pluralize(
            len(newest_outdated), "trial of other versions or paths is", "trials of other versions or paths are"
        )
        notes.append(f"{left_out} left out. Installed: {_format_versions()}.")
    damaged = [trial for trial in selected if trial.status is Status.COMPLETE and not _has_scores(trial, design)]
    if damaged:
        keys = ", ".join(trial.key for trial in damaged[:5])
        notes.append(f"{pluralize(len(damaged), 'trial')} left out, because the deciding score is missing: {keys}.")
    return TrialSelection([trial for trial in selected if trial not in damaged], notes)


def _any_complete(trials: Iterable[Trial]) -> bool:
    return any(trial.status is Status.COMPLETE for trial in trials)


def _has_scores(trial: Trial, design: StudyDesign) -> bool:
    """Return whether a trial has a score of the study's metric on the validation split and on the reported split."""
    # Results come from a database, perhaps of an earlier version: any metric may be missing.
    condition = trial.spec.condition
    metrics = trial.result.metrics if trial.result else {}
    splits = {"validation", design.report_split(condition)}
    return all(isinstance(metrics.get(split, {}).get(design.metric(condition)), int | float) for split in splits)


def _format_versions() -> str:
    """Format the installed versions, `torch 2.9.0, peft 0.18.0`."""
    return json.dumps(library_versions())[1:-1].replace('"', "").replace(": ", " ")
