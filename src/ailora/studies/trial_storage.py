"""Trials in an Optuna storage: the queue, claims, results, and the trials of dead workers."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ailora.errors import InputError
from ailora.redaction import mask_url, without_secrets
from ailora.studies.running_trial import RunningTrial
from ailora.studies.storage_url import open_storage, sqlite_file, storage_errors, validate_url
from ailora.studies.trial import Status, Trial, TrialSpec
from ailora.studies.trial_attempts import (
    KEY,
    SPEC,
    find_counted_attempt,
    group_attempts,
    is_lost,
    parse_trial,
    read_frozen_trials,
)
from ailora.studies.trial_keys import TrialKeys

#: Attributes of an Optuna study: the study file, the text of its `TrialKeys`, and the folder of its relative paths.
_CONFIG, _TRIAL_KEYS, _FOLDER = "study", "trial_keys", "folder"
#: Heartbeats that a worker sends within the timeout, so that a late heartbeat does not make it count as dead.
_HEARTBEATS_PER_TIMEOUT = 6


class TrialStorage:
    """Trials of a study or a search.

    Attributes:
        url: URL of the Optuna database.
        name: Name of the study in the database.
        config: Plain data of the study file, with `retries` and `worker_timeout`.
        trial_keys: Stored text of `TrialKeys.to_text`, or None.
        folder: Absolute folder of the relative paths in the study file; None in storages of the first versions.
    """

    def __init__(self, url: str, study: optuna.Study, storage: RDBStorage, *, read_only: bool = False) -> None:
        self.url = url
        self.name = study.study_name
        attributes = study.user_attrs
        # Databases written by the first versions contain secrets.
        self.config: dict[str, Any] = without_secrets(attributes[_CONFIG])
        self.trial_keys: object = attributes.get(_TRIAL_KEYS)
        folder = attributes.get(_FOLDER)
        self.folder = Path(folder) if isinstance(folder, str) and Path(folder).is_absolute() else None
        self._study = study
        self._storage = storage
        self._read_only = read_only
        self._waiting: deque[FrozenTrial] = deque()
        #: Value of `time.monotonic()` at the last refresh of the queue; -inf to refresh at the next claim.
        self._refreshed_at = -float("inf")
        storage.grace_period = self.config["worker_timeout"]
        storage.heartbeat_interval = max(1, storage.grace_period // _HEARTBEATS_PER_TIMEOUT)

    @classmethod
    def create(cls, url: str, name: str, config: Mapping[str, object]) -> TrialStorage:
        """Create a study in a storage.

        Args:
            url: Optuna database URL.
            name: Name of the study.
            config: Plain data of the study file.

        Returns:
            The storage of the new study.

        Raises:
            InputError: The storage cannot be reached, or already has a study of that name.
        """
        with open_storage(url) as storage:
            # A study without a stored study file may exist already: its creation was interrupted, see `_is_incomplete`.
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
            if not _is_incomplete(study):
                raise InputError(f"{mask_url(url)} already has a study {name!r}")
            study.set_user_attr(_CONFIG, without_secrets(config))
            return cls(url, study, storage)

    @property
    def is_search(self) -> bool:
        """Whether the storage holds the trials of a search by `ailora tune`, not of a study."""
        return self.config.get("kind") == "tune"

    @classmethod
    def load_or_none(cls, url: str, name: str, *, read_only: bool = False) -> TrialStorage | None:
        """Load a study if it exists; neither the study nor the storage is created.

        Args:
            url: Optuna database URL.
            name: Name of the study.
            read_only: Whether to open the storage read-only.

        Returns:
            The storage of the study, or None if there is no such study.

        Raises:
            InputError: The storage cannot be reached, or a different program made the study of that name.
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
            url: Optuna database URL.
            name: Name of the study.
            read_only: Whether to open the storage read-only.

        Returns:
            The storage of the study.

        Raises:
            InputError: The storage cannot be reached or has no such study, or a different program made the study.
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

    def save_folder(self, folder: Path) -> None:
        """Store the folder of the relative paths in the study file."""
        if folder != self.folder:
            with storage_errors(self.url):
                self._study.set_user_attr(_FOLDER, str(folder))
            self.folder = folder

    def enqueue(self, specs: Mapping[str, TrialSpec]) -> int:
        """Queue the trials that the storage lacks.

        Args:
            specs: Specification of each trial, by key.

        Returns:
            The number of newly queued trials.
        """
        stored_keys = {trial.key for trial in self.trials()}
        new = {key: spec for key, spec in specs.items() if key not in stored_keys}
        with storage_errors(self.url):
            for key, spec in new.items():
                self._study.enqueue_trial({}, user_attrs={KEY: key, SPEC: spec.to_dict()})
        if new:
            self._refreshed_at = -float("inf")
        return len(new)

    def retry_refused(self, keys: TrialKeys) -> None:
        """Queue again all trials that failed by invalid input.

        Args:
            keys: Keys of the study; other trials are not queued.
        """
        with storage_errors(self.url):
            for attempts in self._attempts().values():
                trial = self._to_trial(attempts)
                if trial.refused and keys.matching_specs(trial.key, trial.spec):
                    self._enqueue_again(attempts[0])
        self._refreshed_at = -float("inf")

    def trials(self) -> list[Trial]:
        """Read all trials in the order of the queue.

        Raises:
            InputError: The storage cannot be read, or a trial is damaged.
        """
        return [self._to_trial(attempts) for attempts in self._attempts().values()]

    def claim_next(self, keys: TrialKeys | None = None) -> RunningTrial | None:
        """Claim the next waiting trial for this worker.

        Args:
            keys: Keys of the study. Trials that are not part of it stay in the queue: their method may have been
                removed from the study file, or a worker with different library versions may have queued them. None
                claims any trial.

        Returns:
            The trial, or None if no trial is waiting.
        """
        # Optuna's `ask` would create a trial if none is waiting. The queue is refreshed after each timeout, so that
        # trials of dead workers return before a long queue ends.
        with storage_errors(self.url):
            if not self._waiting or time.monotonic() - self._refreshed_at > self.config["worker_timeout"]:
                self._refresh_queue()
            while self._waiting:
                frozen = self._waiting.popleft()
                key, stored = frozen.user_attrs[KEY], TrialSpec.from_dict(frozen.user_attrs[SPEC])
                specs = [stored] if keys is None else keys.matching_specs(key, stored)
                if not specs:
                    continue
                trial_id = self._trial_id(frozen.number)
                # Optuna never considers a running trial without a heartbeat dead. If this worker were killed between
                # its claim and its first heartbeat, all workers would wait for the trial forever.
                self._storage.record_heartbeat(trial_id)
                # If another worker claimed the trial first, the call returns False, or raises if the trial has ended.
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                        return RunningTrial(
                            self._study, self._storage, key=key, spec=specs[0], trial_id=trial_id, url=self.url
                        )
            return None

    def _refresh_queue(self) -> None:
        """Find the waiting trials, and queue the trials of dead workers again."""
        # Optuna's RetryHeartbeatStaleTrialCallback marks a trial as failed, and then queues it again. If its process is
        # killed in between, nothing queues the trial. Therefore the loop below looks for all lost trials each time.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self._study)
        for attempts in self._attempts().values():
            if self._to_trial(attempts).status is Status.WAITING and is_lost(find_counted_attempt(attempts)):
                self._enqueue_again(attempts[0])
        counted = map(find_counted_attempt, self._attempts().values())
        self._waiting = deque(frozen for frozen in counted if frozen.state is TrialState.WAITING)
        self._refreshed_at = time.monotonic()

    def _enqueue_again(self, attempt: FrozenTrial) -> None:
        self._study.enqueue_trial({}, user_attrs={name: attempt.user_attrs[name] for name in (KEY, SPEC)})

    def _attempts(self) -> dict[str, list[FrozenTrial]]:
        """Read all attempts by key, each list by number."""
        with storage_errors(self.url):
            if self._read_only:
                # Optuna's `get_trials` reads five more tables, and takes five times as long. Workers still use it: they
                # read often, and it caches trials that have ended.
                return group_attempts(read_frozen_trials(self._storage, self.name))
            return group_attempts(self._study.get_trials(deepcopy=False))

    def _to_trial(self, attempts: list[FrozenTrial]) -> Trial:
        try:
            return parse_trial(attempts, retries=self.config["retries"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{mask_url(self.url)}: trial {attempts[0].number} of the study {self.name!r} is damaged "
                f"({type(error).__name__}: {error})"
            ) from None

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


def _is_incomplete(study: optuna.Study) -> bool:
    """Return whether a study has only a name: a process is still in `TrialStorage.create`, or was killed there."""
    return not study.user_attrs and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE


def _is_config(plain: object) -> bool:
    """Return whether plain data have the keys that a storage needs: `retries` and `worker_timeout`."""
    numbers = [plain.get(key) for key in ("retries", "worker_timeout")] if isinstance(plain, dict) else [None]
    return all(isinstance(number, int) and number >= 0 for number in numbers)
