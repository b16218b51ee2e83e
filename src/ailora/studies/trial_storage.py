"""Trials in an Optuna storage: queue, claims, results, and the recovery from workers that die.

A trial is known by its key. It may be started more than once; what counts is the first attempt, by number, that was not
lost. So it does no harm when two workers add the same trial at once, or when one dies while it adds one: the rule says
which attempt counts, and what is missing is added again.
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

# Attributes of a trial in databases: `key` and `cell` from its beginning, then one of the others.
_KEY, _SPEC, _RESULT, _ERROR, _INTERRUPTED = "key", "cell", "outcome", "error", "interrupted"
#: Attributes of an Optuna study: the study file, and the text of its `TrialKeys`.
_CONFIG, _TRIAL_KEYS = "study", "trial_keys"
#: Trials that must have ended before another one is pruned.
_MIN_PEERS = 4
_HEARTBEATS_PER_TIMEOUT = 6
#: Fields of Optuna's trials that we make no use of.
_UNREAD: dict[str, Any] = {
    "value": None,
    "datetime_complete": None,
    **{name: {} for name in ("params", "distributions", "system_attrs", "intermediate_values")},
}


class TrialStorage:
    """Trials of one study.

    Attributes:
        url: the Optuna database.
        name: the study's name in it.
        config: plain data of the study file; `retries` and `worker_timeout` apply here.
        trial_keys: text of `TrialKeys.to_text`, as it is stored; None where nothing is.
    """

    def __init__(self, url: str, study: optuna.Study, storage: RDBStorage, *, read_only: bool = False) -> None:
        self.url = url
        self.name = study.study_name
        # The first databases hold secrets.
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
            url: an Optuna database URL.
            name: of the study.
            config: plain data of the study file.

        Raises:
            InputError: the storage cannot be reached, or holds a study of that name.
        """
        with open_storage(url) as storage:
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
            if not _is_incomplete(study):
                raise InputError(f"{mask_url(url)} holds a study {name!r} already")
            study.set_user_attr(_CONFIG, without_secrets(config))
            return cls(url, study, storage)

    @classmethod
    def load_or_none(cls, url: str, name: str, *, read_only: bool = False) -> TrialStorage | None:
        """Load a study from a storage, or return None if it is not there. Nothing is created.

        Args:
            url: an Optuna database URL.
            name: of the study.
            read_only: whether the study is only looked at; the storage is opened so then.

        Raises:
            InputError: the storage cannot be reached, or holds a study of that name that is not ours.
        """
        validate_url(url)
        if (file := sqlite_file(url)) is not None and not file.is_file():
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
            url: an Optuna database URL.
            name: of the study.
            read_only: as of `load_or_none`.

        Raises:
            InputError: as `load_or_none`, and where the storage holds no such study.
        """
        if (storage := cls.load_or_none(url, name, read_only=read_only)) is None:
            raise InputError(f"{mask_url(url)} holds no study {name!r}: `ailora study run` makes it")
        return storage

    def close(self) -> None:
        """Close the connections to the storage."""
        self._storage.engine.dispose()

    def update_config(self, config: Mapping[str, object]) -> None:
        """Replace the study file, as for a grid that was extended."""
        with storage_errors(self.url):
            self._study.set_user_attr(_CONFIG, without_secrets(config))
        self.config = without_secrets(config)

    def save_trial_keys(self, text: str | None) -> None:
        """Store the text of a study's `TrialKeys`, or that there is none."""
        if text != self.trial_keys:
            with storage_errors(self.url):
                self._study.set_user_attr(_TRIAL_KEYS, text)
            self.trial_keys = text

    def enqueue(self, specs: Mapping[str, TrialSpec]) -> int:
        """Queue the trials that are not in the storage yet.

        Args:
            specs: key -> specification of the trial.

        Returns:
            Number of trials that were queued.
        """
        known = {trial.key for trial in self.trials()}
        new = {key: spec for key, spec in specs.items() if key not in known}
        with storage_errors(self.url):
            for key, spec in new.items():
                self._study.enqueue_trial({}, user_attrs={_KEY: key, _SPEC: spec.to_dict()})
        if new:
            self._refreshed = -float("inf")
        return len(new)

    def trials(self) -> list[Trial]:
        """Read all trials, in the order in which they were queued.

        Raises:
            InputError: the storage cannot be read, or a trial in it is damaged.
        """
        return [self._to_trial(attempts) for attempts in self._attempts().values()]

    def claim_next(self) -> RunningTrial | None:
        """Claim the next trial that waits for this worker, or return None if none waits."""
        # Optuna's `ask` creates a trial where none waits. Trials of dead workers come back even during a long queue.
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
        """Find the trials that wait, and queue those again whose worker died."""
        # Not by a callback of Optuna's such as RetryHeartbeatStaleTrialCallback: it queues in the process that noticed
        # the death, after the trial counts as failed. If that process is killed in between, the trial is lost for ever.
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
        """Read what we need of all trials; Optuna reads five more tables, which takes five times as long.

        A worker keeps to Optuna, which remembers the trials that have ended.
        """
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
    """A trial that this worker runs. Inside its `with` block it shows the storage that the worker is alive.

    Attributes:
        key: as of `Trial`.
        spec: its specification.
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
        """Record its result.

        Args:
            result: of the run.
            score: what decides, larger is better.
        """
        self._end({_RESULT: result.to_dict()}, TrialState.COMPLETE, [score])

    def fail(self, error: str) -> None:
        """Record an error that another attempt would meet again."""
        self._end({_ERROR: error}, TrialState.FAIL)

    def prune(self, reason: str) -> None:
        """Record that it was ended early because others are better."""
        self._end({_ERROR: reason}, TrialState.PRUNED)

    def requeue(self) -> None:
        """Give it back when the worker is asked to stop: it waits again, and this attempt does not count."""
        self._end({_INTERRUPTED: True}, TrialState.FAIL)

    def report(self, step: int, score: float) -> None:
        """Record a score in the middle of the run."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_intermediate_value(self._id, step, score)

    def should_prune(self, peers: Collection[str]) -> bool:
        """Whether its last score is worse than the median of its peers' at that step.

        Args:
            peers: keys of the trials to compare with; those that are done count, if they are enough.
        """
        # Optuna's pruner compares with all trials of a study: show it a study of the peers alone.
        study = optuna.create_study(direction="maximize")
        done = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        study.add_trials(frozen for frozen in done if frozen.user_attrs.get(_KEY) in peers)
        return MedianPruner(n_startup_trials=_MIN_PEERS).prune(study, self._storage.get_trial(self._id))

    def _end(self, attributes: Mapping[str, object], state: TrialState, values: list[float] | None = None) -> None:
        # Another worker may have taken this one for dead, and started the trial again: then that attempt counts.
        with storage_errors(self._url), contextlib.suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(self._id, name, value)
            self._storage.set_trial_state_values(self._id, state, values)

    def _beat(self) -> None:
        interval = self._storage.get_heartbeat_interval()
        assert interval is not None
        while True:
            # Unlike Optuna's own thread, this one goes on after a moment in which the storage does not answer.
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                self._storage.record_heartbeat(self._id)
            if self._stop.wait(interval):
                return


def _is_incomplete(study: optuna.Study) -> bool:
    """Whether there is nothing but a name: `create` is at work elsewhere, or was killed there."""
    return not study.user_attrs and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE


def _is_config(plain: object) -> bool:
    """Whether plain data are a study file as far as a storage reads it."""
    numbers = [plain.get(key) for key in ("retries", "worker_timeout")] if isinstance(plain, dict) else [None]
    return all(isinstance(number, int) and number >= 0 for number in numbers)


def _is_lost(frozen: FrozenTrial) -> bool:
    """Whether an attempt ended without a result or an error: its worker died, or was asked to stop."""
    return frozen.state is TrialState.FAIL and _ERROR not in frozen.user_attrs


def _counting_attempt(attempts: list[FrozenTrial]) -> FrozenTrial:
    """Return the attempt that counts: the first that was not lost, else the last."""
    return next((frozen for frozen in attempts if not _is_lost(frozen)), attempts[-1])
