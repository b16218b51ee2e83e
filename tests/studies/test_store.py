"""What every storage must do: nothing is lost, nothing is doubled, whoever dies."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from ailora import InputError
from ailora.studies.trial import Condition, Status, TrialResult, TrialSpec
from ailora.studies.trial_attempts import RESULT
from ailora.studies.trial_storage import TrialStorage

SETTINGS = {"retries": 2, "worker_timeout": 2}


@pytest.fixture
def storage(url: str, request: pytest.FixtureRequest) -> Iterator[TrialStorage]:
    made = TrialStorage.create(url, request.node.name, SETTINGS)
    yield made
    made.close()


def specs(*keys: str) -> dict[str, TrialSpec]:
    return {key: TrialSpec(Condition("base", key), 1e-3, 0) for key in keys}


def only(storage: TrialStorage) -> Any:
    (trial,) = storage.trials()
    return trial


def test_a_trial_waits_runs_and_is_done(storage: TrialStorage) -> None:
    assert storage.enqueue(specs("a")) == 1
    assert only(storage).status is Status.WAITING
    taken = storage.claim_next()
    assert taken is not None
    assert (taken.key, taken.spec) == ("a", specs("a")["a"])
    with taken:
        assert only(storage).status is Status.RUNNING
        taken.complete(TrialResult({"validation": {"x": 1.0}}), 0.5)
    assert only(storage).status is Status.COMPLETE
    assert only(storage).result.metrics == {"validation": {"x": 1.0}}
    assert storage.claim_next() is None


def test_what_is_there_is_not_added_again(storage: TrialStorage) -> None:
    storage.enqueue(specs("a", "b"))
    assert storage.enqueue(specs("a", "b", "c")) == 1
    assert [trial.key for trial in storage.trials()] == ["a", "b", "c"]


def test_a_failure_is_kept_with_its_error_and_not_tried_again(storage: TrialStorage) -> None:
    storage.enqueue(specs("a"))
    taken = storage.claim_next()
    assert taken is not None
    with taken:
        taken.fail("ValueError: no")
    assert (only(storage).status, only(storage).error) == (Status.FAIL, "ValueError: no")
    assert storage.claim_next() is None


def test_an_interrupted_trial_waits_again_and_has_lost_no_attempt(storage: TrialStorage) -> None:
    storage.enqueue(specs("a"))
    for _ in range(5):
        taken = storage.claim_next()
        assert taken is not None
        with taken:
            taken.requeue()
    assert (only(storage).status, only(storage).attempts) == (Status.WAITING, 1)


def die(storage: TrialStorage) -> None:
    """Take a trial and end without a word: its heart has stopped long ago."""
    taken = storage.claim_next()
    assert taken is not None
    storage._storage.set_trial_state_values(taken._id, TrialState.FAIL)


def test_a_result_without_an_end_does_not_count(storage: TrialStorage) -> None:
    """The worker wrote its result, and died before the state."""
    storage.enqueue(specs("a"))
    for _ in range(3):
        taken = storage.claim_next()
        assert taken is not None
        storage._storage.set_trial_user_attr(taken._id, RESULT, TrialResult({}).to_dict())
        storage._storage.set_trial_state_values(taken._id, TrialState.FAIL)
        assert only(storage).result is None
    assert only(storage).status is Status.FAIL


def test_a_dead_workers_trial_is_started_again_but_not_for_ever(storage: TrialStorage) -> None:
    storage.enqueue(specs("a"))
    for attempt in (1, 2, 3):
        die(storage)
        assert only(storage).attempts == attempt
    assert (only(storage).status, only(storage).error) == (Status.FAIL, "its worker died 3 times")
    assert storage.claim_next() is None


def test_a_worker_taken_for_dead_changes_nothing_when_it_ends(storage: TrialStorage) -> None:
    storage.enqueue(specs("a"))
    first = storage.claim_next()
    assert first is not None
    storage._storage.set_trial_state_values(first._id, TrialState.FAIL)
    second = storage.claim_next()
    assert second is not None
    with second:
        second.complete(TrialResult({}, folder="second"), 1.0)
    first.complete(TrialResult({}, folder="first"), 2.0)
    assert only(storage).result.folder == "second"


def test_two_that_add_the_same_trial_make_one(storage: TrialStorage, url: str) -> None:
    """As when both found it missing before either had added it."""
    other = TrialStorage.load(url, storage.name)
    storage.enqueue(specs("a"))
    other._study.add_trial(storage._study.get_trials()[0])
    assert len(storage.trials()) == 1
    taken = other.claim_next()
    assert taken is not None
    with taken:
        taken.complete(TrialResult({}), 1.0)
    assert other.claim_next() is None
    other.close()
    assert storage.claim_next() is None
    assert only(storage).status is Status.COMPLETE


def test_the_study_file_is_kept(storage: TrialStorage, url: str) -> None:
    storage.update_config(SETTINGS | {"methods": ["lora"]})
    again = TrialStorage.load(url, storage.name)
    assert again.config == SETTINGS | {"methods": ["lora"]}
    again.close()


def test_a_study_whose_making_was_killed_is_made_again(url: str) -> None:
    """Optuna has its name, and nothing else was written."""
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="half", direction="maximize")
    storage.engine.dispose()
    assert TrialStorage.load_or_none(url, "half") is None
    storage = TrialStorage.create(url, "half", SETTINGS)
    assert storage.enqueue(specs("a")) == 1
    storage.close()


def test_a_study_of_another_program_is_left_alone(url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="theirs", direction="minimize")
    storage.engine.dispose()
    with pytest.raises(InputError, match="was not made by ailora"):
        TrialStorage.load_or_none(url, "theirs")
    with pytest.raises(InputError, match=r"already has a study"):
        TrialStorage.create(url, "theirs", SETTINGS)


def test_a_study_is_made_once(storage: TrialStorage, url: str) -> None:
    with pytest.raises(InputError, match=r"already has a study"):
        TrialStorage.create(url, storage.name, SETTINGS)
    assert TrialStorage.load_or_none(url, "another") is None


def test_a_study_that_is_not_there(storage: TrialStorage, url: str) -> None:
    with pytest.raises(InputError, match="holds no study 'another'"):
        TrialStorage.load(url, "another")


def test_a_storage_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'study.db'}"
    with pytest.raises(InputError, match="holds no study 'x'"):
        TrialStorage.load(url, "x")
    assert TrialStorage.load_or_none(url, "x") is None
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url", "no url is not a database URL"),
        ("nosuchdb://x/y", "storage nosuchdb://x/y is not a database URL"),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/none", r"me:\*\*\*@127.0.0.1:9/none cannot be reached"),
    ],
)
def test_a_storage_that_cannot_be_reached(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrialStorage.create(url, "x", SETTINGS)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("hello")
    with pytest.raises(InputError, match=r"study.db cannot be reached: .*not a database"):
        TrialStorage.load(f"sqlite:///{tmp_path / 'study.db'}", "x")


_TAKER = """
import sys
import time
from ailora.studies.trial import TrialResult
from ailora.studies.trial_storage import TrialStorage
storage = TrialStorage.load(sys.argv[1], sys.argv[2])
while (taken := storage.claim_next()) is not None:
    with taken:
        taken.complete(TrialResult({}, folder=sys.argv[3]), 1.0)
"""


@pytest.mark.ci
def test_two_workers_share_many_trials_without_loss_or_double(storage: TrialStorage, url: str) -> None:
    """Every attempt is counted, the double ones too."""
    # A living worker that waits for the disk longer than its timeout counts as dead, and its trial fails and returns.
    storage.update_config(storage.config | {"worker_timeout": 60})
    number = 300
    storage.enqueue(specs(*map(str, range(number))))
    workers = [subprocess.Popen([sys.executable, "-c", _TAKER, url, storage.name, str(i)]) for i in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    attempts = storage._study.get_trials(deepcopy=False)
    assert Counter(trial.state.name for trial in attempts) == {"COMPLETE": number}
    assert {trial.status for trial in storage.trials()} == {Status.COMPLETE}


@pytest.mark.ci
def test_takers_of_one_sqlite_file_never_take_the_same_trial(tmp_path: Path) -> None:
    """Each writes down what it took: a trial that two had taken would be done only once all the same."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    storage = TrialStorage.create(url, "race", SETTINGS | {"worker_timeout": 60})
    storage.enqueue(specs(*map(str, range(200))))
    script = _TAKER.replace("    with taken:", "    print(taken.key)\n    with taken:")
    workers = [
        subprocess.Popen([sys.executable, "-c", script, url, "race", "x"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    taken = [line for worker in workers for line in worker.communicate(timeout=300)[0].split()]
    assert sorted(taken, key=int) == list(map(str, range(200)))


def test_storages_may_be_made_by_several_at_once(tmp_path: Path) -> None:
    """Each makes the tables if they are missing; all of them end with the same ones."""
    script = "import sys\nfrom ailora.studies.trial_storage import TrialStorage\n"
    script += "TrialStorage.create(sys.argv[1], sys.argv[2], {'retries': 2, 'worker_timeout': 2})"
    url = f"sqlite:///{tmp_path / 'study.db'}"
    makers = [subprocess.Popen([sys.executable, "-c", script, url, str(i)]) for i in range(4)]
    assert [maker.wait(timeout=300) for maker in makers] == [0] * 4
    for i in range(4):
        TrialStorage.load(url, str(i)).close()


_HOLDER = """
import sys, time
from ailora.studies.trial_storage import TrialStorage
taken = TrialStorage.load(sys.argv[1], sys.argv[2]).claim_next()
with taken:
    print(taken.key, flush=True)
    time.sleep(600)
"""


def test_a_worker_that_is_killed_while_it_holds_a_trial_is_taken_over(storage: TrialStorage) -> None:
    """Its heart beat until the kill; the trial is started again, and both starts are counted."""
    storage.enqueue(specs("a"))
    command = [sys.executable, "-c", _HOLDER, storage.url, storage.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "a\n"
        # It is alive: nobody takes its trial away, however long it has run.
        time.sleep(SETTINGS["worker_timeout"] + 1)
        assert storage.claim_next() is None
        assert only(storage).status is Status.RUNNING
        worker.kill()
    deadline = time.monotonic() + 60
    while (taken := storage.claim_next()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert taken is not None
    with taken:
        taken.complete(TrialResult({}), 1.0)
    assert (only(storage).status, only(storage).attempts) == (Status.COMPLETE, 2)


def test_a_reader_sees_all_and_writes_nothing(storage: TrialStorage, url: str) -> None:
    storage.enqueue(specs("a", "b"))
    taken = storage.claim_next()
    assert taken is not None
    reader = TrialStorage.load(url, storage.name, read_only=True)
    assert reader.trials() == storage.trials()
    with pytest.raises(InputError, match=r"read-?only"):
        reader.enqueue(specs("c"))
    with taken:
        taken.complete(TrialResult({}), 1.0)
    assert [trial.status for trial in reader.trials()] == [Status.COMPLETE, Status.WAITING]
    reader.close()


def test_a_worker_that_is_killed_before_its_first_heartbeat_is_taken_over(storage: TrialStorage, url: str) -> None:
    storage.enqueue(specs("a"))
    other = TrialStorage.load(url, storage.name)
    # Claimed by a worker that does not get as far as its `with` block.
    assert other.claim_next() is not None
    other.close()
    deadline = time.monotonic() + 60
    while (taken := storage.claim_next()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert taken is not None
    assert taken.key == "a"
