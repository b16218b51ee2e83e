"""Trials in an Optuna storage: who runs which, what came of it, and what happens when a worker dies.

A trial is known by the key of its cell. It may be started more than once; what counts is the first attempt, by number,
that was not lost. So it does no harm when two workers add the same cell at once, or when one dies while it adds one:
the rule says which trial counts, and what is missing is added again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from ailora.errors import InputError
from ailora.studies.storage_url import reaching, shown, sqlite_file

# Names of what we keep beside Optuna's own: `key` and `cell` when a trial is added; then one of the others.
_KEY, _CELL, _OUTCOME, _ERROR, _INTERRUPTED = "key", "cell", "outcome", "error", "interrupted"
_STUDY = "study"
#: Trials that have ended before another one is compared with them.
_ENOUGH_PEERS = 4
#: Signs of life within the time after which a worker counts as dead.
_BEATS = 6


class Status(StrEnum):
    """Where a trial is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PRUNED = "pruned"


@dataclass(frozen=True)
class Trial:
    """What is known of a cell's run.

    Attributes:
        number: Optuna's, of the attempt that counts.
        key: of the cell.
        cell: as `Cell.described`.
        status: where it is.
        outcome: what came of it, when it is done.
        error: why it failed, or was pruned.
        attempts: how often it was started.
    """

    number: int
    key: str
    cell: dict[str, Any]
    status: Status
    outcome: dict[str, Any] | None = None
    error: str | None = None
    attempts: int = 1

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.status not in (Status.WAITING, Status.RUNNING)


class Store:
    """The trials of one study.

    Attributes:
        url: the Optuna database.
        name: the study's name in it.
        study: what `create` was given: the study file.
    """

    def __init__(self, url: str, study: optuna.Study, storage: RDBStorage) -> None:
        self.url = url
        self.name = study.study_name
        self._study = study
        self._storage = storage
        self._waiting: deque[FrozenTrial] = deque()
        self._looked = -float("inf")
        self.study: dict[str, Any] = study.user_attrs[_STUDY]
        storage.grace_period = self.study["worker_timeout"]
        storage.heartbeat_interval = max(1, storage.grace_period // _BEATS)

    @classmethod
    def create(cls, url: str, name: str, study: Mapping[str, Any]) -> Store:
        """A new study in a storage.

        Args:
            url: an Optuna database URL.
            name: of the study.
            study: plain data of the study file; `retries` and `worker_timeout` rule here.

        Raises:
            InputError: the storage cannot be reached, or holds a study of that name.
        """
        with reaching(url) as storage:
            made = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
            if not _is_being_made(made):
                raise InputError(f"{shown(url)} holds a study {name!r} already")
            made.set_user_attr(_STUDY, dict(study))
            return cls(url, made, storage)

    @classmethod
    def find(cls, url: str, name: str) -> Store | None:
        """A study that is in a storage; None: it is not. Nothing is made.

        Raises:
            InputError: the storage cannot be reached, or holds a study of that name that is not ours.
        """
        if (file := sqlite_file(url)) is not None and not file.is_file():
            return None
        with reaching(url) as storage:
            if name not in optuna.get_all_study_names(storage):
                storage.engine.dispose()
                return None
            found = optuna.load_study(storage=storage, study_name=name)
            if _is_being_made(found):
                storage.engine.dispose()
                return None
            if _STUDY not in found.user_attrs:
                raise InputError(f"{shown(url)}: the study {name!r} was not made by ailora")
            return cls(url, found, storage)

    @classmethod
    def open(cls, url: str, name: str) -> Store:
        """As `find`.

        Raises:
            InputError: the storage holds no such study too.
        """
        if (found := cls.find(url, name)) is None:
            raise InputError(f"{shown(url)} holds no study {name!r}: `ailora study run` makes it")
        return found

    def close(self) -> None:
        """Close the connections to the storage."""
        self._storage.engine.dispose()

    def rewrite(self, study: Mapping[str, Any]) -> None:
        """Keep another study file, for a grid that was extended."""
        self._study.set_user_attr(_STUDY, dict(study))
        self.study = dict(study)

    def add(self, cells: Mapping[str, dict[str, Any]]) -> int:
        """Queue the cells that have no trial yet; how many these were.

        Args:
            cells: key -> cell.
        """
        known = {trial.key for trial in self.trials()}
        new = {key: cell for key, cell in cells.items() if key not in known}
        for key, cell in new.items():
            self._study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={_KEY: key, _CELL: cell}))
        if new:
            self._looked = -float("inf")
        return len(new)

    def trials(self) -> list[Trial]:
        """Every cell's trial, in the order in which they were added."""
        return [self._counting(attempts) for attempts in self._attempts().values()]

    def take(self) -> Running | None:
        """The next trial that waits, now this worker's; None: none waits."""
        # Trials of dead workers come back even while there is a long queue.
        if not self._waiting or time.monotonic() - self._looked > self.study["worker_timeout"]:
            self._look()
        while self._waiting:
            frozen = self._waiting.popleft()
            trial_id = self._id(frozen.number)
            with contextlib.suppress(UpdateFinishedTrialError):
                if self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    attributes = frozen.user_attrs
                    return Running(self, trial_id, attributes[_KEY], attributes[_CELL])
        return None

    def _look(self) -> None:
        """Find what waits; what was lost with its worker is queued again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self._study)
        for attempts in self._attempts().values():
            if self._counting(attempts).status is Status.WAITING and all(map(_is_lost, attempts)):
                attributes = {name: attempts[0].user_attrs[name] for name in (_KEY, _CELL)}
                self._study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))
        self._waiting = deque(
            frozen for attempts in self._attempts().values() if (frozen := _first(attempts)).state is TrialState.WAITING
        )
        self._looked = time.monotonic()

    def _attempts(self) -> dict[str, list[FrozenTrial]]:
        """Key -> its trials by number."""
        found: dict[str, list[FrozenTrial]] = {}
        for frozen in self._study.get_trials(deepcopy=False):
            if _KEY in frozen.user_attrs:
                found.setdefault(frozen.user_attrs[_KEY], []).append(frozen)
        return found

    def _counting(self, attempts: list[FrozenTrial]) -> Trial:
        frozen = _first(attempts)
        attributes = frozen.user_attrs
        status, error = _STATUS[frozen.state], attributes.get(_ERROR)
        started = sum(one.datetime_start is not None and _INTERRUPTED not in one.user_attrs for one in attempts)
        if _is_lost(frozen):
            lost_for_good = started > self.study["retries"]
            status = Status.FAILED if lost_for_good else Status.WAITING
            error = f"its worker died {started} times" if lost_for_good else None
        return Trial(
            frozen.number,
            attributes[_KEY],
            attributes[_CELL],
            status,
            attributes.get(_OUTCOME),
            error,
            max(started, 1),
        )

    def _id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


class Running:
    """A trial that this worker runs. Inside its `with` block it shows the storage that the worker lives.

    Attributes:
        key, cell: as of `Trial`.
    """

    def __init__(self, store: Store, trial_id: int, key: str, cell: dict[str, Any]) -> None:
        self.key = key
        self.cell = cell
        self._store = store
        self._id = trial_id
        self._stop = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Running:
        self._beating.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._beating.join()

    def done(self, outcome: dict[str, Any], score: float) -> None:
        """It has ended well.

        Args:
            outcome: plain data.
            score: what decides, larger is better.
        """
        self._end({_OUTCOME: outcome}, TrialState.COMPLETE, [score])

    def failed(self, error: str) -> None:
        """It has ended with an error, which another attempt would meet again."""
        self._end({_ERROR: error}, TrialState.FAIL)

    def evaluated(self, step: int, score: float) -> None:
        """Keep a score in the middle of the run."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._store._storage.set_trial_intermediate_value(self._id, step, score)

    def falls_behind(self, peers: Collection[str]) -> bool:
        """Whether its last evaluation is worse than the median of its peers' at that step.

        Args:
            peers: keys of trials to compare with; those that are done count, if they are enough.
        """
        view = optuna.create_study(direction="maximize")
        view.add_trials(
            frozen
            for frozen in self._store._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            if frozen.user_attrs.get(_KEY) in peers
        )
        return MedianPruner(n_startup_trials=_ENOUGH_PEERS).prune(view, self._store._storage.get_trial(self._id))

    def pruned(self, reason: str) -> None:
        """It was ended early because others are better."""
        self._end({_ERROR: reason}, TrialState.PRUNED)

    def interrupted(self) -> None:
        """The worker was asked to stop: the trial waits again, and this attempt does not count."""
        self._end({_INTERRUPTED: True}, TrialState.FAIL)

    def _end(self, attributes: dict[str, Any], state: TrialState, values: list[float] | None = None) -> None:
        storage = self._store._storage
        # Another worker may have taken this one for dead, and started the trial again: then that attempt counts.
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                storage.set_trial_user_attr(self._id, name, value)
            storage.set_trial_state_values(self._id, state, values)

    def _beat(self) -> None:
        interval = self._store._storage.get_heartbeat_interval()
        assert interval is not None
        while True:
            # A storage that does not answer for a moment does not end the run.
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                self._store._storage.record_heartbeat(self._id)
            if self._stop.wait(interval):
                return


_STATUS = {
    TrialState.WAITING: Status.WAITING,
    TrialState.RUNNING: Status.RUNNING,
    TrialState.COMPLETE: Status.DONE,
    TrialState.FAIL: Status.FAILED,
    TrialState.PRUNED: Status.PRUNED,
}


def _is_being_made(study: optuna.Study) -> bool:
    """Whether there is nothing but a name: `create` is at work elsewhere, or was killed there."""
    return not study.user_attrs and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE


def _is_lost(frozen: FrozenTrial) -> bool:
    """Whether an attempt ended without a word: its worker died, or was asked to stop."""
    return frozen.state is TrialState.FAIL and _ERROR not in frozen.user_attrs


def _first(attempts: list[FrozenTrial]) -> FrozenTrial:
    """The attempt that counts: the first that was not lost, else the last."""
    return next((frozen for frozen in attempts if not _is_lost(frozen)), attempts[-1])
