"""A trial run by this worker: its heartbeats, and the record of its result or error."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Mapping

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from ailora.studies.storage_url import storage_errors
from ailora.studies.trial import TrialResult, TrialSpec
from ailora.studies.trial_attempts import ERROR, INTERRUPTED, KEY, RESULT

#: Number of complete peers that pruning needs: the median of fewer depends too much on single runs.
_MIN_PEERS = 4


class RunningTrial:
    """A trial claimed by this worker. Inside its `with` block, a thread sends heartbeats to the storage.

    Args:
        study: Optuna study of the trial.
        storage: Storage of the Optuna study.
        key: Key of the trial.
        spec: Specification of the trial.
        trial_id: Optuna's id of the claimed attempt.
        url: URL of the storage, for error messages.

    Attributes:
        key: Key of the trial.
        spec: Specification of the trial.
    """

    def __init__(
        self, study: optuna.Study, storage: RDBStorage, *, key: str, spec: TrialSpec, trial_id: int, url: str
    ) -> None:
        self.key = key
        self.spec = spec
        self._url = url
        self._study = study
        self._storage = storage
        self._id = trial_id
        self._stop = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def __enter__(self) -> RunningTrial:
        self._heartbeat_thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._heartbeat_thread.join()

    def complete(self, result: TrialResult, score: float) -> None:
        """Record the result.

        Args:
            result: Result of the run.
            score: Score on the validation split; larger is better.
        """
        self._end({RESULT: result.to_dict()}, TrialState.COMPLETE, [score])

    def fail(self, error: str) -> None:
        """Record an error that would recur in another attempt."""
        self._end({ERROR: error}, TrialState.FAIL)

    def prune(self, reason: str) -> None:
        """Record that the trial was stopped early because its peers are better."""
        self._end({ERROR: reason}, TrialState.PRUNED)

    def requeue(self) -> None:
        """Return the trial to the queue because the worker stops; this attempt does not count."""
        self._end({INTERRUPTED: True}, TrialState.FAIL)

    def report(self, step: int, score: float) -> None:
        """Record a score of an evaluation during the run; larger is better."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_intermediate_value(self._id, step, score)

    def should_prune(self, peers: Collection[str]) -> bool:
        """Return whether the best score so far is below the median of the peers' scores at the last reported step.

        Args:
            peers: Keys of the trials to compare with. Only complete trials count, and pruning needs at least four.
        """
        # Optuna's pruner compares a trial with all trials of its study, so it gets a study with the peers only.
        peer_study = optuna.create_study(direction="maximize")
        complete_trials = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        peer_study.add_trials(trial for trial in complete_trials if trial.user_attrs.get(KEY) in peers)
        return MedianPruner(n_startup_trials=_MIN_PEERS).prune(peer_study, self._storage.get_trial(self._id))

    def _end(self, attributes: Mapping[str, object], state: TrialState, values: list[float] | None = None) -> None:
        # If another worker considered this worker dead and restarted the trial, the new attempt counts.
        with storage_errors(self._url), contextlib.suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(self._id, name, value)
            self._storage.set_trial_state_values(self._id, state, values)

    def _send_heartbeats(self) -> None:
        interval = self._storage.get_heartbeat_interval()
        assert interval is not None
        # `TrialStorage.claim_next` records the first heartbeat.
        while not self._stop.wait(interval):
            # Unlike Optuna's own heartbeat thread, this thread continues after an error of the storage.
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                self._storage.record_heartbeat(self._id)
