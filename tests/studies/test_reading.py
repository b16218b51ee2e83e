"""Reading a study: nothing is imported, nothing is written, and what is damaged is said."""

from __future__ import annotations

import json
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ailora import InputError
from ailora.report.build import build_page
from ailora.studies import storage_url
from ailora.studies.study import create_or_load_study, load_study, load_study_from_storage, trial_frame
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import work
from tests.studies.test_worker import Runs


@pytest.fixture
def finished(study: dict[str, Any]) -> dict[str, Any]:
    """A study of one trial that has ended."""
    study |= {"methods": ["lora"], "learning_rate": {"values": [1e-3]}, "seeds": [0]}
    storage, design = create_or_load_study(load_study_config(study))
    assert work(storage, design, Runs()) == 1
    storage.close()
    return study


def database(study: dict[str, Any]) -> Path:
    return Path(study["output"]) / "study.db"


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_a_method_of_the_users_is_not_imported_by_reading(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is missing, as at a colleague's; a worker needs it."""
    file = tmp_path / "methods" / "method_of_mine.py"
    file.parent.mkdir()
    file.write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\ndef build(model, context): return model\n")
    study |= {"methods": ["lora", "method_of_mine:build"], "learning_rate": {"values": [1e-3]}, "seeds": [0]}
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(file.parent))
        storage, design = create_or_load_study(load_study_config(study))
        work(storage, design, Runs())
    assert (tmp_path / "imported").exists()
    sys.modules.pop("method_of_mine")

    def read_all() -> None:
        assert len(trial_frame(*load_study(load_study_config(study)))) == 2
        assert len(trial_frame(*load_study_from_storage(storage.url, storage.name, to_run=False))) == 2
        assert build_page([Path(study["output"])]).problems == ()

    (tmp_path / "imported").unlink()
    monkeypatch.syspath_prepend(str(file.parent))
    read_all()
    assert not (tmp_path / "imported").exists()
    file.unlink()
    read_all()
    with pytest.raises(InputError, match="the module method_of_mine cannot be imported"):
        load_study_from_storage(storage.url, storage.name)


def test_reading_changes_nothing(finished: dict[str, Any]) -> None:
    file = database(finished)
    before = file.read_bytes()
    trial_frame(*load_study(load_study_config(finished)))
    build_page([file.parent])
    assert file.read_bytes() == before
    storage, _ = load_study(load_study_config(finished))
    with pytest.raises(InputError, match="readonly database"):
        storage.enqueue({"x": storage.trials()[0].spec})


def kill_while_writing(file: Path) -> None:
    """A process is killed after SQLite has written pages of a transaction to the file."""
    script = f"""
import os, signal, sqlite3
connection = sqlite3.connect({str(file)!r}, isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE studies SET study_name = 'half'")
connection.execute("CREATE TABLE half (x)")
connection.executemany("INSERT INTO half VALUES (?)", [("x" * 4000,)] * 20)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    reader = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    with closing(reader), pytest.raises(sqlite3.OperationalError, match="readonly database"):
        reader.execute("SELECT * FROM studies")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_write_cut_off_by_a_kill_is_undone_by_the_next_reader(finished: dict[str, Any], *, read_only: bool) -> None:
    before = trial_frame(*load_study(load_study_config(finished)))
    kill_while_writing(database(finished))
    storage = TrialStorage.load(f"sqlite:///{database(finished)}", "study", read_only=read_only)
    assert trial_frame(storage, StudyDesign(load_study_config(finished))).equals(before)


def test_a_reader_that_is_open_survives_the_kill_of_a_writer(finished: dict[str, Any]) -> None:
    storage, _ = load_study(load_study_config(finished))
    before = storage.trials()
    kill_while_writing(database(finished))
    assert storage.trials() == before


def test_a_write_that_cannot_be_undone_is_one_message(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_while_writing(database(finished))
    connect = storage_url._connect
    # As on a file system that is mounted without permission to write.
    monkeypatch.setattr(storage_url, "_connect", lambda file, read_only: connect(file, read_only=True))
    with pytest.raises(InputError, match="open the study once with permission to write"):
        load_study(load_study_config(finished))


def test_a_reader_knows_all_that_a_worker_knows(study: dict[str, Any]) -> None:
    storage, design = create_or_load_study(load_study_config(study))
    work(storage, design, Runs())
    assert storage.enqueue({"again": storage.trials()[0].spec}) == 1
    assert storage.claim_next() is not None
    reader = TrialStorage.load(storage.url, storage.name, read_only=True)
    assert reader.trials() == storage.trials()
    assert len(reader.trials()) == 19


@pytest.mark.parametrize("statements", [(), ("CREATE TABLE theirs (x)",)], ids=["empty", "foreign"])
def test_tables_are_not_added_by_reading(finished: dict[str, Any], statements: tuple[str, ...]) -> None:
    file = database(finished)
    file.unlink()
    change(file, "CREATE TABLE gone (x)", "DROP TABLE gone", *statements)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"tables of Optuna .* are missing|different program"):
        load_study(load_study_config(finished))
    with pytest.raises(InputError, match=r"tables of Optuna .* are missing|different program"):
        build_page([file.parent])
    assert file.read_bytes() == before


def test_a_study_is_not_made_in_the_database_of_another_program(study: dict[str, Any]) -> None:
    file = database(study)
    file.parent.mkdir()
    change(file, "CREATE TABLE theirs (x)")
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"database of a different program \(tables: theirs\)"):
        create_or_load_study(load_study_config(study))
    assert file.read_bytes() == before


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20_000])


def _overwritten(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    file.write_bytes(content)


def _statement(statement: str) -> Callable[[Path], None]:
    return lambda file: change(file, statement)


def _study_file(**changes: Any) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection, connection:
            ((text,),) = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = 'study'")
            value = json.dumps(json.loads(text) | changes)
            connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'study'", (value,))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no database": (lambda file: file.write_text("hello") and None, "not a database"),
    "cut": (_cut, "malformed"),
    "overwritten": (_overwritten, "malformed|are missing"),
    "a later Optuna": (_statement("UPDATE alembic_version SET version_num = 'v99.0.0'"), "no longer compatible"),
    "no version": (_statement("DELETE FROM alembic_version"), "cannot be reached|readonly"),
    "a missing table": (_statement("DROP TABLE trials"), "tables of Optuna .* are missing"),
    "a missing column": (_statement("ALTER TABLE trials DROP COLUMN state"), "no such column"),
    "a study file that is none": (
        _statement("UPDATE study_user_attributes SET value_json = '[1]' WHERE key = 'study'"),
        "not made by ailora, or is damaged",
    ),
    "a base that is none": (_study_file(base="/etc/passwd"), "base: expected a mapping, got '/etc/passwd'"),
    "methods that are none": (_study_file(methods=3), "configuration key methods is 3"),
    "rates that are none": (_study_file(learning_rate={}), "learning_rate"),
    "a state that is none": (_statement("UPDATE trials SET state = 'LATE'"), "is damaged: LookupError"),
    "a text that is none": (
        _statement("UPDATE trial_user_attributes SET value_json = x'ff00fe'"),
        "is damaged: UnicodeDecodeError",
    ),
    "deep JSON": (
        _statement(f"UPDATE study_user_attributes SET value_json = '{'[' * 100_000}' WHERE key = 'study'"),
        "is damaged: RecursionError",
    ),
    "a trigger": (
        _statement("CREATE TRIGGER late AFTER INSERT ON trials BEGIN DELETE FROM studies; END"),
        "has the trigger 'late'",
    ),
    "a trial that is none": (
        _statement("UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'cell'"),
        "trial 0 of the study 'study' is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_storage_is_one_message(finished: dict[str, Any], name: str) -> None:
    damage, message = DAMAGE[name]
    file = database(finished)
    damage(file)

    def read() -> None:
        trial_frame(*load_study_from_storage(f"sqlite:///{file}", "study", to_run=False))

    with pytest.raises(InputError, match=message) as error:
        read()
    assert str(file) in str(error.value)
    with pytest.raises(InputError):
        build_page([file.parent])


@pytest.mark.parametrize("read_only", [True, False])
def test_a_view_in_the_place_of_a_table_is_not_read(finished: dict[str, Any], *, read_only: bool) -> None:
    """A view may count for ever."""
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    file = database(finished)
    change(file, "ALTER TABLE trials RENAME TO moved", f"CREATE VIEW trials AS {numbers} SELECT moved.* FROM moved, n")
    with pytest.raises(InputError, match="has the view 'trials'"):
        TrialStorage.load(f"sqlite:///{file}", "study", read_only=read_only)


def test_a_storage_that_is_locked_says_so_and_is_waited_for(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage_url, "_LOCK_NOTICE_S", 0.05)
    holder = sqlite3.connect(database(finished), isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.5, holder.close)
    timer.start()
    with caplog.at_level(logging.WARNING, logger="ailora"):
        storage, _ = load_study(load_study_config(finished))
    assert [record.getMessage() for record in caplog.records] == [
        f"{database(finished)} is locked by another process: waiting up to 120 s"
    ]
    assert len(storage.trials()) == 1
    timer.join()


def test_a_storage_that_stays_locked_is_one_message(finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_url, "_LOCK_NOTICE_S", 0.05)
    monkeypatch.setattr(storage_url, "_LOCK_TIMEOUT_S", 0.1)
    storage = TrialStorage.load(f"sqlite:///{database(finished)}", "study")
    spec = storage.trials()[0].spec
    with closing(sqlite3.connect(database(finished), isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match="database is locked"):
            storage.enqueue({"x": spec})


def test_a_full_disk_is_one_message(finished: dict[str, Any]) -> None:
    """SQLite's limit of pages stands for it: the error is the same."""
    storage = TrialStorage.load(f"sqlite:///{database(finished)}", "study")
    spec = storage.trials()[0].spec

    @storage_url.event.listens_for(storage._storage.engine, "connect")
    def limit(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    storage.close()
    with pytest.raises(InputError, match="database or disk is full"):
        storage.enqueue({str(i): spec for i in range(2_000)})
    storage.close()
    assert len(TrialStorage.load(storage.url, "study").trials()) < 2_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "list.yaml"}, r"base: .*list.yaml: expected keys such as recipe, model, data; got \[1, 2\]"),
        ({"base": "empty.yaml"}, r"base: .*empty.yaml: expected keys such as recipe, model, data; got nothing"),
        ({"base": [1]}, r"configuration key base is \[1\]; expected a file or a mapping"),
        ({"scales": [1]}, r"scales: expected a mapping from a name to keys of the file, got \[1\]"),
        ({"scales": {"a": 3}}, r"scales: expected a mapping from a name to keys of the file"),
    ],
)
def test_a_study_file_with_another_kind_of_value(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "empty.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_study_config(study | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": {"from": 1e-320, "to": 1e300}}, "more than 100 decades"),
        ({"seeds": [*range(100_000), 7]}, "seeds: duplicate seed 7"),
        ({"storage": "sqlite:///a\0b"}, "not printable"),
    ],
)
def test_values_beyond_reason_are_refused_at_once(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        create_or_load_study(load_study_config(study | changes))
    assert not (tmp_path / "a").exists()


def test_memory_is_no_storage(study: dict[str, Any]) -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(InputError, match="in the memory of one process"):
            create_or_load_study(load_study_config(study | {"storage": url}))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the storage's URL is empty"),
        ("sqlite:///a\0b", "not printable"),
        ("study.db", "is not a database URL"),
        ("sqlite:///~/study.db", r"SQLite does not expand ~.*; write sqlite:////\S+/study\.db"),
        # SQLAlchemy 2.0 would read the escape as part of the file's name.
        ("sqlite:///{a}.db", "accepts no braces; choose a path without braces"),
        ("postgresql+psycopg://u:{@h/n", "accepts no braces; write them as %7B and %7D"),
        ("x" * 5000, r"^storage x{100,500}[^x].{0,60}not a database URL"),
    ],
)
def test_a_url_that_leads_nowhere_is_told_before_the_study_is_missed(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrialStorage.load(url, "study")
