"""Trials in an Optuna storage: queue, claims, results, and recovery from dead workers.

The key identifies a trial, which may have several attempts. The first attempt, by number, that was not lost counts.
Therefore two workers may add the same trial at once, and a worker may die while adding one: the rule selects an
attempt, and a missing one is added again.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from ailora.errors import InputError
from ailora.redaction import mask_url, without_secrets
from ailora.studies.storage_url import open_storage, sqlite_file, storage_errors, validate_url
from ailora.studies.trial import Status, Trial, TrialResult, TrialSpec

# Attributes of a trial in databases: `key` and `cell` when it is queued, then one of the others.
_KEY, _SPEC, _RESULT, _ERROR, _INTERRUPTED = "key", "cell", "outcome", "error", "interrupted"
#: Attributes of an Optuna study: the study file, and the text of its `TrialKeys`.
_CONFIG, _TRIAL_KEYS = "study", "trial_keys"
#: Number of finished peers that pruning needs.
_MIN_PEERS = 4
_HEARTBEATS_PER_TIMEOUT = 6
#: Fields of Optuna's trials without a use here.
_UNREAD: dict[str, Any] = {
    "value": None,
    "datetime_complete": None,
    **{name: {} for name in ("params", "distributions", "system_attrs", "intermediate_values")},
}


class TrialStorage:
    """Trials of one study.

    Attributes:
        url: URL of the Optuna database.
        name: Name of the study in the database.
        config: Plain data of the study file, with `retries` and `worker_timeout`.
        trial_keys: Stored text of `TrialKeys.to_text`, or None.
    """

    def __init__(self, url: str, study: optuna.Study, storage: RDBStorage, *, read_only: bool = False) -> None:
        self.url = url
        self.name = study.study_name
        # Databases of the first versions contain secrets.
        attributes = study.user_attrs
        self.config: dict[str, Any] = without_secrets(attributes[_CONFIG])
        self.trial_keys: object = attributes.get(_TRIAL_KEYS)
        self._study = study
        self._storage = storage
        self._read_only = read_only
        self._waiting: deque[FrozenTrial] = deque()
        self._refreshed = -float("inf")
        storage.grace_period = self.config["worker_timeout"]
        storage.heartbeat_interval = max(1, storage.grace_period // _HEARTBEATS_PER_TIMEOUT)

    @classmethod
    def create(cls, url: str, name: str, config: Mapping[str, object]) -> TrialStorage:
        """Create a study in a storage.

        Args:
            url: An Optuna database URL.
            name: Name of the study.
            config: Plain data of the study file.

        Returns:
            The storage of the new study.

        Raises:
            InputError: The storage cannot be reached, or already has a study of that name.
        """
        with open_storage(url) as storage:
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
            if not _is_incomplete(study):
                raise InputError(f"{mask_url(url)} already has a study {name!r}")
            study.set_user_attr(_CONFIG, without_secrets(config))
            return cls(url, study, storage)

    @classmethod
    def load_or_none(cls, url: str, name: str, *, read_only: bool = False) -> TrialStorage | None:
        """Load a study from a storage; nothing is created.

        Args:
            url: An Optuna database URL.
            name: Name of the study.
            read_only: Open the storage read-only.

        Returns:
            The storage of the study, or None if there is no such study.

        Raises:
            InputError: The storage cannot be reached, or another program made the study of that name.
        """
        validate_url(url)
        if (file := sqlite_file(url)) is not None and not file.is_file():
            if file.is_dir():
                raise InputError(f"storage {mask_url(url)} is a folder; expected a database file")
            return None
        with open_storage(url, read_only=read_only) as storage:
            study = None
            if name in optuna.get_all_study_names(storage):
                study = optuna.load_study(storage=storage, study_name=name)
            if study is None or _is_incomplete(study):
                storage.engine.dispose()
                return None
            if not _is_config(study.user_attrs.get(_CONFIG)):
                raise InputError(f"{mask_url(url)}: the study {name!r} was not made by ailora, or is damaged")
            return cls(url, study, storage, read_only=read_only)

    @classmethod
    def load(cls, url: str, name: str, *, read_only: bool = False) -> TrialStorage:
        """Load a study from a storage.

        Args:
            url: An Optuna database URL.
            name: Name of the study.
            read_only: Open the storage read-only.

        Returns:
            The storage of the study.

        Raises:
            InputError: See `load_or_none`; or the storage has no such study.
        """
        if (storage := cls.load_or_none(url, name, read_only=read_only)) is None:
            raise InputError(f"{mask_url(url)} holds no study {name!r}: `ailora study run` creates it")
        return storage

    def close(self) -> None:
        """Close the connections to the storage."""
        self._storage.engine.dispose()

    def update_config(self, config: Mapping[str, object]) -> None:
        """Replace the stored study file, for example after the grid was extended."""
        with storage_errors(self.url):
            self._study.set_user_attr(_CONFIG, without_secrets(config))
        self.config = without_secrets(config)

    def save_trial_keys(self, text: str | None) -> None:
        """Store the text of the study's `TrialKeys`, or None."""
        if text != self.trial_keys:
            with storage_errors(self.url):
                self._study.set_user_attr(_TRIAL_KEYS, text)
            self.trial_keys = text

    def enqueue(self, specs: Mapping[str, TrialSpec]) -> int:
        """Queue the trials that the storage does not have yet.

        Args:
            specs: Specification of each trial by key.

        Returns:
            The number of newly queued trials.
        """
        stored_keys = {trial.key for trial in self.trials()}
        new = {key: spec for key, spec in specs.items() if key not in stored_keys}
        with storage_errors(self.url):
            for key, spec in new.items():
                self._study.enqueue_trial({}, user_attrs={_KEY: key, _SPEC: spec.to_dict()})
        if new:
            self._refreshed = -float("inf")
        return len(new)

    def trials(self) -> list[Trial]:
        """Read all trials in the order of the queue.

        Raises:
            InputError: The storage cannot be read, or a trial is damaged.
        """
        return [self._to_trial(attempts) for attempts in self._attempts().values()]

    def claim_next(self) -> RunningTrial | None:
        """Claim the next waiting trial for this worker, or return None if no trial is waiting."""
        # Not Optuna's `ask`, which creates a trial if none is waiting. The queue is refreshed after each timeout, so
        # that trials of dead workers return before a long queue ends.
        with storage_errors(self.url):
            if not self._waiting or time.monotonic() - self._refreshed > self.config["worker_timeout"]:
                self._refresh_queue()
            while self._waiting:
                frozen = self._waiting.popleft()
                trial_id = self._trial_id(frozen.number)
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                        return RunningTrial(self, trial_id, frozen)
            return None

    def _refresh_queue(self) -> None:
        """Find the waiting trials, and queue the trials of dead workers again."""
        # Not by Optuna's RetryHeartbeatStaleTrialCallback: it queues the trial after marking it as failed, in the
        # process that noticed the death. If that process is killed in between, the trial is lost.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self._study)
        for attempts in self._attempts().values():
            if self._to_trial(attempts).status is Status.WAITING and all(map(_is_lost, attempts)):
                attributes = {name: attempts[0].user_attrs[name] for name in (_KEY, _SPEC)}
                self._study.enqueue_trial({}, user_attrs=attributes)
        counting = map(_counting_attempt, self._attempts().values())
        self._waiting = deque(frozen for frozen in counting if frozen.state is TrialState.WAITING)
        self._refreshed = time.monotonic()

    def _attempts(self) -> dict[str, list[FrozenTrial]]:
        """Read all attempts by key, each list by number."""
        attempts: dict[str, list[FrozenTrial]] = {}
        with storage_errors(self.url):
            frozen_trials = self._read_trials() if self._read_only else self._study.get_trials(deepcopy=False)
        for frozen in frozen_trials:
            if _KEY in frozen.user_attrs:
                attempts.setdefault(frozen.user_attrs[_KEY], []).append(frozen)
        return attempts

    def _read_trials(self) -> list[FrozenTrial]:
        """Read numbers, states and attributes of all trials."""
        # Optuna reads five more tables, which takes five times as long; workers use its cache of finished trials.
        study = TrialModel.study_id == self._storage.get_study_id_from_name(self.name)
        columns = TrialModel.trial_id, TrialModel.number, TrialModel.state, TrialModel.__table__.c.datetime_start
        of_trial = TrialUserAttributeModel.trial_id, TrialUserAttributeModel.key, TrialUserAttributeModel.value_json
        attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        with self._storage.engine.connect() as connection:
            for trial_id, key, value in connection.execute(select(*of_trial).join(TrialModel).where(study)):
                attributes[trial_id][key] = json.loads(value)
            rows = connection.execute(select(*columns).where(study).order_by(TrialModel.number)).all()
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

    def _to_trial(self, attempts: list[FrozenTrial]) -> Trial:
        try:
            return self._parse_trial(attempts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{mask_url(self.url)}: trial {attempts[0].number} of the study {self.name!r} is damaged "
                f"({type(error).__name__}: {error})"
            ) from None

    def _parse_trial(self, attempts: list[FrozenTrial]) -> Trial:
        frozen = _counting_attempt(attempts)
        attributes = frozen.user_attrs
        status, error = Status[frozen.state.name], attributes.get(_ERROR)
        started = sum(a.datetime_start is not None and _INTERRUPTED not in a.user_attrs for a in attempts)
        if _is_lost(frozen):
            exhausted = started > self.config["retries"]
            status = Status.FAIL if exhausted else Status.WAITING
            error = f"its worker died {started} times" if exhausted else None
        return Trial(
            number=frozen.number,
            key=attributes[_KEY],
            spec=TrialSpec.from_dict(attributes[_SPEC]),
            status=status,
            result=TrialResult.from_dict(attributes[_RESULT]) if _RESULT in attributes else None,
            error=error,
            attempts=max(started, 1),
        )

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


class RunningTrial:
    """A trial claimed by this worker; inside its `with` block the storage gets heartbeats.

    Attributes:
        key: Key of the trial.
        spec: Specification of the trial.
    """

    def __init__(self, storage: TrialStorage, trial_id: int, frozen: FrozenTrial) -> None:
        self.key: str = frozen.user_attrs[_KEY]
        self.spec = TrialSpec.from_dict(frozen.user_attrs[_SPEC])
        self._url = storage.url
        self._study = storage._study  # noqa: SLF001 (a class of this module)
        self._storage = storage._storage  # noqa: SLF001
        self._id = trial_id
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> RunningTrial:
        self._heart.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._heart.join()

    def complete(self, result: TrialResult, score: float) -> None:
        """Record the result.

        Args:
            result: Result of the run.
            score: Score on the validation split; larger is better.
        """
        self._end({_RESULT: result.to_dict()}, TrialState.COMPLETE, [score])

    def fail(self, error: str) -> None:
        """Record an error that would recur in another attempt."""
        self._end({_ERROR: error}, TrialState.FAIL)

    def prune(self, reason: str) -> None:
        """Record that the trial was stopped early because its peers are better."""
        self._end({_ERROR: reason}, TrialState.PRUNED)

    def requeue(self) -> None:
        """Return the trial to the queue because the worker stops; this attempt does not count."""
        self._end({_INTERRUPTED: True}, TrialState.FAIL)

    def report(self, step: int, score: float) -> None:
        """Record a score in the middle of the run."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_intermediate_value(self._id, step, score)

    def should_prune(self, peers: Collection[str]) -> bool:
        """Return whether the last score is below the median of the peers' scores at that step.

        Args:
            peers: Keys of the trials to compare with; finished ones count, and at least four are needed.
        """
        # Optuna's pruner compares with all trials of a study, so that it gets a study of the peers alone.
        study = optuna.create_study(direction="maximize")
        done = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        study.add_trials(frozen for frozen in done if frozen.user_attrs.get(_KEY) in peers)
        return MedianPruner(n_startup_trials=_MIN_PEERS).prune(study, self._storage.get_trial(self._id))

    def _end(self, attributes: Mapping[str, object], state: TrialState, values: list[float] | None = None) -> None:
        # If another worker considered this one dead and started the trial again, that attempt counts.
        with storage_errors(self._url), contextlib.suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(self._id, name, value)
            self._storage.set_trial_state_values(self._id, state, values)

    def _beat(self) -> None:
        interval = self._storage.get_heartbeat_interval()
        assert interval is not None
        while True:
            # Unlike Optuna's own thread, this one continues after an error of the storage.
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                self._storage.record_heartbeat(self._id)
            if self._stop.wait(interval):
                return


def _is_incomplete(study: optuna.Study) -> bool:
    """Return whether a study has only a name: another process is in `create`, or was killed there."""
    return not study.user_attrs and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE


def _is_config(plain: object) -> bool:
    """Return whether plain data have the keys of a study file that a storage reads."""
    numbers = [plain.get(key) for key in ("retries", "worker_timeout")] if isinstance(plain, dict) else [None]
    return all(isinstance(number, int) and number >= 0 for number in numbers)


def _is_lost(frozen: FrozenTrial) -> bool:
    """Return whether an attempt ended without result and error: its worker died or was asked to stop."""
    return frozen.state is TrialState.FAIL and _ERROR not in frozen.user_attrs


def _counting_attempt(attempts: list[FrozenTrial]) -> FrozenTrial:
    """Return the counting attempt: the first that was not lost, else the last."""
    return next((frozen for frozen in attempts if not _is_lost(frozen)), attempts[-1])
