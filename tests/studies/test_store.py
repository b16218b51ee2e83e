"""What every storage must do: nothing is lost, nothing is doubled, whoever dies."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from ailora import InputError
from ailora.studies.trial_storage import Status, Store

SETTINGS = {"retries": 2, "worker_timeout": 2}


@pytest.fixture
def store(url: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    made = Store.create(url, request.node.name, SETTINGS)
    yield made
    made.close()


def cells(*keys: str) -> dict[str, dict[str, Any]]:
    return {key: {"name": key} for key in keys}


def only(store: Store) -> Any:
    (trial,) = store.trials()
    return trial


def test_a_trial_waits_runs_and_is_done(store: Store) -> None:
    assert store.add(cells("a")) == 1
    assert only(store).status is Status.WAITING
    taken = store.take()
    assert taken is not None
    assert (taken.key, taken.cell) == ("a", {"name": "a"})
    with taken:
        assert only(store).status is Status.RUNNING
        taken.done({"metrics": {"x": 1.0}}, 0.5)
    assert only(store).status is Status.DONE
    assert only(store).outcome == {"metrics": {"x": 1.0}}
    assert store.take() is None


def test_what_is_there_is_not_added_again(store: Store) -> None:
    store.add(cells("a", "b"))
    assert store.add(cells("a", "b", "c")) == 1
    assert [trial.key for trial in store.trials()] == ["a", "b", "c"]


def test_a_failure_is_kept_with_its_error_and_not_tried_again(store: Store) -> None:
    store.add(cells("a"))
    taken = store.take()
    assert taken is not None
    with taken:
        taken.failed("ValueError: no")
    assert (only(store).status, only(store).error) == (Status.FAILED, "ValueError: no")
    assert store.take() is None


def test_an_interrupted_trial_waits_again_and_has_lost_no_attempt(store: Store) -> None:
    store.add(cells("a"))
    for _ in range(5):
        taken = store.take()
        assert taken is not None
        with taken:
            taken.interrupted()
    assert (only(store).status, only(store).attempts) == (Status.WAITING, 1)


def die(store: Store) -> None:
    """Take a trial and end without a word: its heart has stopped long ago."""
    taken = store.take()
    assert taken is not None
    store._storage.set_trial_state_values(taken._id, TrialState.FAIL)


def test_a_dead_workers_trial_is_started_again_but_not_for_ever(store: Store) -> None:
    store.add(cells("a"))
    for attempt in (1, 2, 3):
        die(store)
        assert only(store).attempts == attempt
    assert (only(store).status, only(store).error) == (Status.FAILED, "its worker died 3 times")
    assert store.take() is None


def test_a_worker_taken_for_dead_changes_nothing_when_it_ends(store: Store) -> None:
    store.add(cells("a"))
    first = store.take()
    assert first is not None
    store._storage.set_trial_state_values(first._id, TrialState.FAIL)
    second = store.take()
    assert second is not None
    with second:
        second.done({"by": "second"}, 1.0)
    first.done({"by": "first"}, 2.0)
    assert only(store).outcome == {"by": "second"}


def test_two_that_add_the_same_cell_make_one_trial(store: Store, url: str) -> None:
    """As when both found it missing before either had added it."""
    other = Store.open(url, store.name)
    store.add(cells("a"))
    other._study.add_trial(store._study.get_trials()[0])
    assert len(store.trials()) == 1
    taken = other.take()
    assert taken is not None
    with taken:
        taken.done({}, 1.0)
    assert other.take() is None
    other.close()
    assert store.take() is None
    assert only(store).status is Status.DONE


def test_the_study_file_is_kept(store: Store, url: str) -> None:
    store.rewrite(SETTINGS | {"methods": ["lora"]})
    again = Store.open(url, store.name)
    assert again.study == SETTINGS | {"methods": ["lora"]}
    again.close()


def test_a_study_whose_making_was_killed_is_made_again(url: str) -> None:
    """Optuna has its name, and nothing else was written."""
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="half", direction="maximize")
    storage.engine.dispose()
    assert Store.find(url, "half") is None
    store = Store.create(url, "half", SETTINGS)
    assert store.add({"a": {}}) == 1
    store.close()


def test_a_study_of_another_program_is_left_alone(url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="theirs", direction="minimize")
    storage.engine.dispose()
    with pytest.raises(InputError, match="was not made by ailora"):
        Store.find(url, "theirs")
    with pytest.raises(InputError, match=r"holds a study .* already"):
        Store.create(url, "theirs", SETTINGS)


def test_a_study_is_made_once(store: Store, url: str) -> None:
    with pytest.raises(InputError, match=r"holds a study .* already"):
        Store.create(url, store.name, SETTINGS)
    assert Store.find(url, "another") is None


def test_a_study_that_is_not_there(store: Store, url: str) -> None:
    with pytest.raises(InputError, match="holds no study 'another'"):
        Store.open(url, "another")


def test_a_storage_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'study.db'}"
    with pytest.raises(InputError, match="holds no study 'x'"):
        Store.open(url, "x")
    assert Store.find(url, "x") is None
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url", "no url is no database URL"),
        ("nosuchdb://x/y", "storage nosuchdb://x/y is no database URL"),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/none", r"me:\*\*\*@127.0.0.1:9/none cannot be reached"),
    ],
)
def test_a_storage_that_cannot_be_reached(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Store.create(url, "x", SETTINGS)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("hello")
    with pytest.raises(InputError, match=r"study.db cannot be reached: .*not a database"):
        Store.open(f"sqlite:///{tmp_path / 'study.db'}", "x")


_TAKER = """
import sys
from ailora.studies.store import Store
store = Store.open(sys.argv[1], sys.argv[2])
while (taken := store.take()) is not None:
    with taken:
        taken.done({"by": sys.argv[3]}, 1.0)
"""


def test_two_workers_share_many_trials_without_loss_or_double(store: Store, url: str) -> None:
    """Every attempt is counted, the double ones too."""
    number = 300
    store.add(cells(*map(str, range(number))))
    workers = [subprocess.Popen([sys.executable, "-c", _TAKER, url, store.name, str(i)]) for i in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    attempts = store._study.get_trials(deepcopy=False)
    assert Counter(trial.state.name for trial in attempts) == {"COMPLETE": number}
    assert {trial.status for trial in store.trials()} == {Status.DONE}


def test_takers_of_one_sqlite_file_never_take_the_same_trial(tmp_path: Path) -> None:
    """Each writes down what it took: a trial that two had taken would be done only once all the same."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    store = Store.create(url, "race", SETTINGS | {"worker_timeout": 60})
    store.add(cells(*map(str, range(200))))
    script = _TAKER.replace("    with taken:", "    print(taken.key)\n    with taken:")
    workers = [
        subprocess.Popen([sys.executable, "-c", script, url, "race", "x"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    taken = [line for worker in workers for line in worker.communicate(timeout=300)[0].split()]
    assert sorted(taken, key=int) == list(map(str, range(200)))


def test_storages_may_be_made_by_several_at_once(tmp_path: Path) -> None:
    """Each makes the tables if they are missing; all of them end with the same ones."""
    script = "import sys\nfrom ailora.studies.trial_storage import Store\n"
    script += "Store.create(sys.argv[1], sys.argv[2], {'retries': 2, 'worker_timeout': 2})"
    url = f"sqlite:///{tmp_path / 'study.db'}"
    makers = [subprocess.Popen([sys.executable, "-c", script, url, str(i)]) for i in range(4)]
    assert [maker.wait(timeout=300) for maker in makers] == [0] * 4
    for i in range(4):
        Store.open(url, str(i)).close()
