"""Databases that hold studies: how to open them, and what SQLite needs."""

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

#: Between attempts to use tables that another process creates just now.
_RETRY_DELAY_S = 0.2
_MAX_RETRIES = 50
#: How long a connection waits for another's write to an SQLite file.
_LOCK_TIMEOUT_S = 120


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL, or None if it is another database's."""
    parsed = _parse(url)
    return Path(parsed.database) if parsed and parsed.get_backend_name() == "sqlite" and parsed.database else None


def _storage(url: str) -> RDBStorage:
    file = sqlite_file(url)
    if file is None:
        return _with_tables(url, {"pool_pre_ping": True})
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = _with_tables(url, {"connect_args": {"timeout": _LOCK_TIMEOUT_S}})
    _serialize(storage.engine)
    return storage


def _with_tables(url: str, arguments: dict[str, Any]) -> RDBStorage:
    """Open Optuna's storage, which creates missing tables: another process may be doing that just now."""
    for _ in range(_MAX_RETRIES):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except (SQLAlchemyError, StorageInternalError) as error:
            # What Optuna raises may stand around SQLAlchemy's error.
            errors = (error, error.__cause__)
            if not any(isinstance(e, IntegrityError) or "already exists" in str(e) for e in errors):
                raise
            time.sleep(_RETRY_DELAY_S)
    return RDBStorage(url, engine_kwargs=arguments)


def _serialize(engine: sqlalchemy.Engine) -> None:
    """Make every transaction on an SQLite file lock it from its beginning.

    Optuna reads a trial's state and then writes it, with a row lock that SQLite does not have: two workers could both
    take a trial. After SQLAlchemy's documentation of the SQLite dialect, "transactional locking".
    """

    @event.listens_for(engine, "connect")
    def disable_implicit_transactions(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        # A killed process loses nothing that was written; only a power failure might.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def lock(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Connections that were made before do not have the first listener.
    engine.dispose()


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[RDBStorage]:
    """Open a storage, and close it if the block raises.

    Raises:
        InputError: it cannot be reached.
    """
    # Optuna's messages about every study would stand between those of a worker.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    try:
        storage = _storage(url)
        yield storage
    except BaseException as error:
        if storage is not None:
            storage.engine.dispose()
        raise _explain(url, error) from error


def _explain(url: str, error: BaseException) -> BaseException:
    if isinstance(error, ArgumentError | NoSuchModuleError):
        return InputError(f"storage {mask_password(url)} is no database URL: {error}")
    if isinstance(error, SQLAlchemyError | StorageInternalError | ImportError | OSError):
        reason = " ".join(str(error.__cause__ or error).split())
        return InputError(f"storage {mask_password(url)} cannot be reached: {reason[:300]}")
    return error


def study_names(url: str) -> list[str]:
    """List the names of the studies in a storage that exists.

    Raises:
        InputError: it cannot be reached.
    """
    with open_storage(url) as storage:
        names = optuna.get_all_study_names(storage)
        storage.engine.dispose()
        return names


def mask_password(url: str) -> str:
    """Return a URL without its password."""
    parsed = _parse(url)
    return url if parsed is None else parsed.render_as_string(hide_password=True)


def _parse(url: str) -> sqlalchemy.URL | None:
    try:
        return sqlalchemy.make_url(url)
    except ArgumentError:
        return None
