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
        The selected trials. If none of them is complete, but trials of other versions are, the newest of the latter.
    """
    stored = list(trials)
    selected = design.keys.matching_trials(stored)
    selected_keys, conditions, seeds = {trial.key for trial in selected}, {*design.conditions}, {*design.seeds}
    rest = [trial for trial in stored if trial.key not in selected_keys]
    planned = [trial for trial in rest if trial.spec.condition in conditions and trial.spec.seed in seeds]
    # The trials are in the order of the queue: the newest of each specification replaces the earlier.
    others = {trial.spec: trial for trial in planned}
    notes = []
    # The study file may have lost a method, a task or a seed since the trials ran.
    if n_removed := len(rest) - len(planned):
        trials_text = pluralize(n_removed, "trial in the storage belongs", "trials in the storage belong")
        notes.append(f"{trials_text} to no condition or seed of the current study file.")
    if _any_complete(others.values()) and not _any_complete(selected):
        notes.append(
            "No trial ran with the installed versions and these paths: the page shows the trials of other versions or "
            f"paths, which `ailora study run` would run again. Installed: {_installed()}."
        )
        selected = list(others.values())
    elif others:
        of_others = "of other versions or paths"
        left_out = pluralize(len(others), f"trial {of_others} is", f"trials {of_others} are")
        notes.append(f"{left_out} left out. Installed: {_installed()}.")
    damaged = [trial for trial in selected if trial.status is Status.COMPLETE and not _has_scores(trial, design)]
    if damaged:
        keys = ", ".join(trial.key for trial in damaged[:5])
        notes.append(f"{pluralize(len(damaged), 'trial')} left out, because the deciding score is missing: {keys}.")
    return TrialSelection([trial for trial in selected if trial not in damaged], notes)


def _any_complete(trials: Iterable[Trial]) -> bool:
    return any(trial.status is Status.COMPLETE for trial in trials)


def _has_scores(trial: Trial, design: StudyDesign) -> bool:
    """Return whether a trial has the deciding score on all splits."""
    # Results come from a database, perhaps of an earlier version: any metric may be missing.
    condition, metrics = trial.spec.condition, trial.result.metrics if trial.result else {}
    splits = {"validation", design.report_split(condition)}
    return all(isinstance(metrics.get(split, {}).get(design.metric(condition)), int | float) for split in splits)


def _installed() -> str:
    return json.dumps(library_versions())[1:-1].replace('"', "").replace(": ", " ")
