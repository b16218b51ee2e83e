"""Attempts of trials in an Optuna study: their attributes, and which attempt counts.

A key identifies a trial, which may have several attempts. The first attempt, by number, that was neither lost
(`is_lost`) nor refused (`is_refused`) counts. Two workers may therefore add the same trial at once. If a worker dies
while it adds a trial, the trial is added again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select

from ailora.studies.trial import Status, Trial, TrialResult, TrialSpec, is_invalid_input

# Names of an attempt's attributes in databases: `key` and `cell` are set when it is queued, and at most one of the
# others when it ends.
KEY, SPEC, RESULT, ERROR, INTERRUPTED = "key", "cell", "outcome", "error", "interrupted"
#: Placeholders for fields that `FrozenTrial` requires, but ailora does not read.
_UNREAD: dict[str, Any] = {
    "value": None,
    "datetime_complete": None,
    **{name: {} for name in ("params", "distributions", "system_attrs", "intermediate_values")},
}


def group_attempts(frozen_trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Group Optuna's trials by key, without trials of other programs.

    Args:
        frozen_trials: Trials of an Optuna study, by number.

    Returns:
        Key -> attempts, by number.
    """
    attempts: dict[str, list[FrozenTrial]] = {}
    for frozen in frozen_trials:
        if KEY in frozen.user_attrs:
            attempts.setdefault(frozen.user_attrs[KEY], []).append(frozen)
    return attempts


def is_lost(frozen: FrozenTrial) -> bool:
    """Return whether an attempt failed without an error of the run: its worker died or was asked to stop."""
    return frozen.state is TrialState.FAIL and ERROR not in frozen.user_attrs


def is_refused(frozen: FrozenTrial) -> bool:
    """Return whether an attempt failed by invalid input, which the user can correct, such as a missing data file."""
    return frozen.state is TrialState.FAIL and is_invalid_input(frozen.user_attrs.get(ERROR))


def find_counted_attempt(attempts: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the attempt that counts: the first that was neither lost nor refused, or else the last."""
    return next((frozen for frozen in attempts if not is_lost(frozen) and not is_refused(frozen)), attempts[-1])


def parse_trial(attempts: Sequence[FrozenTrial], *, retries: int) -> Trial:
    """Parse a trial from its attempts.

    Args:
        attempts: All attempts of a trial, by number.
        retries: Number of restarts of a trial whose worker died.

    Returns:
        The trial. If all attempts were lost or refused, and the last was lost, the trial waits for another attempt, or
        has failed if workers died in more than `retries` attempts.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: An attribute is missing or damaged.
    """
    frozen = find_counted_attempt(attempts)
    attributes = frozen.user_attrs
    status, error = Status[frozen.state.name], attributes.get(ERROR)
    # Starts that a user interrupted, or that failed by invalid input, do not use up the retries.
    n_starts = sum(
        attempt.datetime_start is not None and INTERRUPTED not in attempt.user_attrs and not is_refused(attempt)
        for attempt in attempts
    )
    if is_lost(frozen):
        exhausted = n_starts > retries
        status = Status.FAIL if exhausted else Status.WAITING
        error = f"its worker died {n_starts} times" if exhausted else None
    return Trial(
        number=frozen.number,
        key=attributes[KEY],
        spec=TrialSpec.from_dict(attributes[SPEC]),
        status=status,
        # A worker writes its result before its state. If it dies in between, the attempt is lost and its result too.
        result=TrialResult.from_dict(attributes[RESULT]) if status is Status.COMPLETE else None,
        error=error,
        attempts=max(n_starts, 1),
    )


def read_frozen_trials(storage: RDBStorage, name: str) -> list[FrozenTrial]:
    """Read numbers, states and attributes of all trials of an Optuna study, by number."""
    in_study = TrialModel.study_id == storage.get_study_id_from_name(name)
    columns = TrialModel.trial_id, TrialModel.number, TrialModel.state, TrialModel.__table__.c.datetime_start
    attribute_columns = (
        TrialUserAttributeModel.trial_id,
        TrialUserAttributeModel.key,
        TrialUserAttributeModel.value_json,
    )
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    with storage.engine.connect() as connection:
        # States are read before attributes: PostgreSQL shows commits between two statements, and a trial that ends
        # between them must not appear as complete without its result.
        rows = connection.execute(select(*columns).where(in_study).order_by(TrialModel.number)).all()
        for trial_id, key, value in connection.execute(select(*attribute_columns).join(TrialModel).where(in_study)):
            attributes[trial_id][key] = json.loads(value)
    return [
        FrozenTrial(
            number=number,
            state=state,
            datetime_start=started,
            user_attrs=attributes[trial_id],
            trial_id=trial_id,
            **_UNREAD,
        )
        for trial_id, number, state, started in rows
    ]
