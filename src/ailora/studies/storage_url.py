"""Open databases of studies by URL, with transactions that are safe on SQLite."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, OperationalError, SQLAlchemyError

from ailora.errors import AiloraError, InputError
from ailora.formatting import shorten
from ailora.path_kind import expand_home
from ailora.redaction import MASK, is_secret, mask_url

#: Delay between attempts to open a storage while another process creates its tables, and number of attempts: 10 s in
#: total.
_RETRY_DELAY_S = 0.2
_MAX_RETRIES = 50
#: Longest wait for a lock on an SQLite file, and the wait before a message is logged.
_LOCK_TIMEOUT_S = 120
_LOCK_NOTICE_S = 5
#: Characters that Optuna reads as placeholders, because it passes URLs to `str.format`.
_BRACES = frozenset("{}")
_log = logging.getLogger(__name__)


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL, or None for other databases."""
    parsed = _parse(url)
    return Path(parsed.database) if parsed and parsed.get_backend_name() == "sqlite" and parsed.database else None


def sqlite_url(file: Path) -> str:
    """Return the URL of an SQLite file, with escapes for characters that have a meaning in URLs.

    Raises:
        InputError: The installed SQLAlchemy has no URL for the path.
    """
    path = str(file)
    escaped = re.sub("[%?{}]", lambda match: f"%{ord(match[0]):02X}", path)
    # SQLAlchemy 2.1 decodes escapes in paths, and 2.0 reads them literally: choose the URL that is read as this file.
    # `validate_url` refuses braces.
    for url in (f"sqlite:///{path}", f"sqlite:///{escaped}"):
        if sqlite_file(url) == file and _BRACES.isdisjoint(url):
            return url
    raise InputError(
        f"the database {path} has one of the characters % ? {{ }} in its path, which SQLAlchemy "
        f"{sqlalchemy.__version__} does not support: choose a different output"
    )


def _open_rdb_storage(url: str, *, read_only: bool) -> RDBStorage:
    validate_url(url)
    file = sqlite_file(url)
    if file is None:
        # During a long trial, a server may close idle connections.
        options: dict[str, Any] = {"pool_pre_ping": True}
        if read_only and url.startswith("postgresql"):
            options["execution_options"] = {"postgresql_readonly": True}
        with _notice_if_slow(f"storage {mask_url(url)} does not answer yet"):
            return _open_with_retries(url, options, read_only=read_only)
    if not read_only:
        file.parent.mkdir(parents=True, exist_ok=True)
    _validate_tables(file, read_only=read_only)
    storage = _open_with_retries(url, {"creator": lambda: _connect(file, read_only=read_only)}, read_only=read_only)
    _lock_transactions(storage.engine, file, read_only=read_only)
    return storage


def validate_url(url: str) -> None:
    """Validate a database URL, and refuse characters that Optuna or SQLite misread.

    Raises:
        InputError: The URL is not a database URL, names a database in memory, or has a character that Optuna or SQLite
            misreads.
    """
    if not url:
        raise InputError("the storage's URL is empty; expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
    parsed = _parse(url)
    if parsed is None:
        raise InputError(
            f"storage {shorten(mask_url(url), 500)} is not a database URL; expected sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError(f"storage {mask_url(url)} is in the memory of one process; expected sqlite:///FILE")
    if parsed.get_backend_name() == "sqlite" and str(parsed.database).startswith("~"):
        raise InputError(
            f"storage {mask_url(url)}: SQLite does not expand ~, and would create a folder of this name; write "
            f"sqlite:///{expand_home(str(parsed.database))}"
        )
    # SQLite would truncate the name of the file at a character such as NUL.
    if not url.isprintable():
        raise InputError(f"storage {mask_url(url)!r} holds a character that is not printable")
    if not _BRACES.isdisjoint(url):
        is_sqlite = parsed.get_backend_name() == "sqlite"
        # SQLAlchemy 2.0 reads escapes in the path of an SQLite file literally.
        remedy = "choose a path without braces" if is_sqlite else "write them as %7B and %7D"
        raise InputError(f"storage {mask_url(url)}: Optuna accepts no braces; {remedy}")


def _connect(file: Path, *, read_only: bool) -> sqlite3.Connection:
    # `_begin` starts the transactions, so sqlite3 must not (`isolation_level`). Optuna's heartbeat thread uses the same
    # connections (`check_same_thread`).
    return sqlite3.connect(
        f"file:{quote(str(file.absolute()))}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=_LOCK_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _validate_tables(file: Path, *, read_only: bool) -> None:
    """Refuse a database of another program before tables are added; wait while the database is locked."""
    with contextlib.closing(_connect(file, read_only=read_only)) as connection:
        _begin(connection, file, read_only=read_only)
        entries = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
        connection.execute("ROLLBACK")
    tables = [name for kind, name in entries if kind == "table"]
    # Views and triggers run SQL from the file: a view in place of a table can run forever, a trigger can change writes.
    for kind, name in entries:
        if kind == "trigger" or (kind == "view" and name in BaseModel.metadata.tables):
            raise InputError(
                f"{file} has the {kind} {name!r}, which Optuna never creates: drop it if you trust the rest of the file"
            )
    if tables and not {*tables} & BaseModel.metadata.tables.keys():
        raise InputError(
            f"{file} is a database of a different program (tables: {', '.join(tables[:5])}), and was not changed: "
            "choose a different storage or output"
        )
    if read_only and not {*tables} >= BaseModel.metadata.tables.keys():
        raise InputError(f"{file} holds no studies: tables of Optuna {optuna.__version__} are missing")


def _open_with_retries(url: str, engine_kwargs: dict[str, Any], *, read_only: bool) -> RDBStorage:
    """Open Optuna's storage. Retry while another process creates the tables."""
    for _ in range(_MAX_RETRIES):
        try:
            return RDBStorage(url, engine_kwargs=engine_kwargs, skip_table_creation=read_only)
        except (SQLAlchemyError, StorageInternalError) as error:
            # Optuna may wrap SQLAlchemy's error.
            errors = (error, error.__cause__)
            if not any(isinstance(e, IntegrityError) or "already exists" in str(e) for e in errors):
                raise
            time.sleep(_RETRY_DELAY_S)
    return RDBStorage(url, engine_kwargs=engine_kwargs, skip_table_creation=read_only)


def _lock_transactions(engine: sqlalchemy.Engine, file: Path, *, read_only: bool) -> None:
    """Make every transaction lock the SQLite file when it begins; read-only transactions block only writers.

    Follows "transactional locking" in SQLAlchemy's documentation of the SQLite dialect.
    """
    # Optuna reads the state of a trial and then writes it, under a row lock. SQLite has no row locks: without a lock on
    # the file, two workers could claim the same trial.

    @event.listens_for(engine, "begin")
    def lock(connection: sqlalchemy.Connection) -> None:
        raw: Any = connection.connection.dbapi_connection
        try:
            _begin(raw, file, read_only=read_only)
        except sqlite3.Error as error:
            # Optuna and the heartbeat thread only handle errors of SQLAlchemy.
            raise OperationalError("BEGIN", None, error) from error


def _begin(connection: sqlite3.Connection, file: Path, *, read_only: bool) -> None:
    """Begin a transaction with a lock, and log a message while another process holds the lock."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    announced = False
    connection.execute(f"PRAGMA busy_timeout = {int(_LOCK_NOTICE_S * 1000)}")
    while True:
        try:
            # NORMAL is faster than the default FULL. A kill loses no committed write; a power failure may lose the last
            # writes.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")
            # A read-only transaction takes its lock with the first read.
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            break
        except sqlite3.OperationalError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
                _undo_write_of_killed_process(file)
                continue
            # The last byte of an extended error code is the primary code.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            if not announced:
                _log.warning("%s is locked by another process: waiting up to %d s", file, _LOCK_TIMEOUT_S)
                announced = True
    # The commit waits for readers, and needs the long timeout.
    connection.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_S * 1000}")


def _undo_write_of_killed_process(file: Path) -> None:
    """Restore the last committed state after a process was killed during a write.

    SQLite does this by itself at the first read, but only if the connection may write.
    """
    try:
        with contextlib.closing(_connect(file, read_only=False)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        raise InputError(
            f"{file} has an unfinished write of a killed process, which cannot be undone here ({error}): "
            "open the study once with permission to write to the file and its folder"
        ) from None


@contextlib.contextmanager
def _notice_if_slow(message: str) -> Generator[None, None, None]:
    timer = threading.Timer(_LOCK_NOTICE_S, _log.warning, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def open_storage(url: str, *, read_only: bool = False) -> Generator[RDBStorage, None, None]:
    """Open a storage, and close it if the block raises. Otherwise the storage stays open for the caller.

    Args:
        url: Optuna database URL.
        read_only: Whether to open the storage read-only.

    Raises:
        InputError: The storage cannot be reached, or belongs to a different program.
    """
    # Optuna logs a message for every study.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    try:
        with storage_errors(url):
            try:
                storage = _open_rdb_storage(url, read_only=read_only)
            # Optuna refuses tables of an incompatible version.
            except RuntimeError as error:
                raise InputError(f"storage {mask_url(url)}: {error}") from error
            yield storage
    except BaseException:
        if storage is not None:
            storage.engine.dispose()
        raise


@contextlib.contextmanager
def storage_errors(url: str) -> Generator[None, None, None]:
    """Convert errors of a database to InputError, without the password in its URL.

    Raises:
        InputError: The database cannot be reached, read or written, or has values that Optuna never writes.
    """
    try:
        yield
    except AiloraError:
        raise
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(f"storage {mask_url(url)} is not a database URL: {_reason(url, error)}") from None
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, ImportError, OSError) as error:
        raise InputError(f"storage {mask_url(url)} cannot be reached: {_reason(url, error)}") from None
    # Raised by Optuna, its enumerations and the JSON parser for values that Optuna never writes.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__}: {_reason(url, error)}"
        raise InputError(f"storage {mask_url(url)} is damaged: {reason}") from None


def _reason(url: str, error: Exception) -> str:
    """Format the message of a driver in a single line, without the passwords in the URL."""
    # Optuna wraps errors of SQLAlchemy, which wrap those of the driver.
    wrapped = error.__cause__ or error
    cause = getattr(wrapped, "orig", None) or wrapped
    reason = " ".join(str(cause).split()).replace(url, mask_url(url))
    parsed = _parse(url)
    secrets = [] if parsed is None else [parsed.password, *(v for k, v in parsed.query.items() if is_secret(k))]
    for secret in filter(None, secrets):
        reason = reason.replace(str(secret), MASK)
    return reason[:300]


def study_names(url: str) -> list[str]:
    """List the names of the studies in an existing storage.

    Raises:
        InputError: The storage cannot be reached.
    """
    with open_storage(url, read_only=True) as storage:
        names = optuna.get_all_study_names(storage)
        storage.engine.dispose()
        return names


def _parse(url: str) -> sqlalchemy.URL | None:
    try:
        return sqlalchemy.make_url(url)
    # A port that is not a number raises a ValueError.
    except (ArgumentError, ValueError):
        return None
