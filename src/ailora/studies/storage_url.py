"""Databases that hold studies: how they are reached, and what SQLite needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from ailora.errors import InputError

#: Seconds after which tables that another process makes are looked for again, and how often.
_MOMENT = 0.2
_LOOKS = 50
#: Seconds that a connection waits for another's write to an SQLite file.
_PATIENCE = 120


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None: another database."""
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError:
        return None
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _storage(url: str) -> RDBStorage:
    file = sqlite_file(url)
    if file is None:
        return _with_tables(url, {"pool_pre_ping": True})
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = _with_tables(url, {"connect_args": {"timeout": _PATIENCE}})
    _serialize(storage.engine)
    return storage


def _with_tables(url: str, arguments: dict[str, Any]) -> RDBStorage:
    """Optuna's storage, whose tables it makes where they are missing: another process may be doing that just now."""
    for _ in range(_LOOKS):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except (SQLAlchemyError, StorageInternalError) as error:
            # What Optuna raises may stand around SQLAlchemy's error.
            either = (error, error.__cause__)
            if not any(isinstance(one, IntegrityError) or "already exists" in str(one) for one in either):
                raise
            time.sleep(_MOMENT)
    return RDBStorage(url, engine_kwargs=arguments)


def _serialize(engine: sqlalchemy.Engine) -> None:
    """Let every transaction on an SQLite file lock it from its beginning.

    Optuna reads a trial's state and then writes it, with a row lock that SQLite does not have: two workers could both
    take a trial. After SQLAlchemy's documentation of the SQLite dialect, "transactional locking".
    """

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        # Whoever is killed loses nothing that was written; only a machine without power might.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def lock(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Connections that were made before do not have the first listener.
    engine.dispose()


@contextlib.contextmanager
def reaching(url: str) -> Iterator[RDBStorage]:
    """A storage, closed when an error comes; which one cannot be reached, and why, is said."""
    # What Optuna says of every study would stand between the messages of a worker.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    try:
        storage = _storage(url)
        yield storage
    except BaseException as error:
        if storage is not None:
            storage.engine.dispose()
        raise _reason(url, error) from error


def _reason(url: str, error: BaseException) -> BaseException:
    if isinstance(error, ArgumentError | NoSuchModuleError):
        return InputError(f"storage {shown(url)} is no database URL: {error}")
    if isinstance(error, SQLAlchemyError | StorageInternalError | ImportError | OSError):
        said = " ".join(str(error.__cause__ or error).split())
        return InputError(f"storage {shown(url)} cannot be reached: {said[:300]}")
    return error


def names_in(url: str) -> list[str]:
    """The names of the studies in a storage that exists.

    Raises:
        InputError: it cannot be reached.
    """
    with reaching(url) as storage:
        names = optuna.get_all_study_names(storage)
        storage.engine.dispose()
        return names


def shown(url: str) -> str:
    """A URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
