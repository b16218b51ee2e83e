"""Environment of the processes that this one starts: none of them imports from the current folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SAFE_PATH, _PATH = "PYTHONSAFEPATH", "PYTHONPATH"


def safe_environment() -> dict[str, str]:
    """Return this process's environment, with which a Python process imports nothing from the current folder.

    `PYTHONPATH` stays, as methods of the user's are found by it; its empty entries, the current folder, do not.
    """
    environment = {**os.environ, _SAFE_PATH: "1"}
    entries = [entry for entry in environment.pop(_PATH, "").split(os.pathsep) if entry]
    return environment | ({_PATH: os.pathsep.join(entries)} if entries else {})


@contextmanager
def safe_import_path() -> Iterator[None]:
    """Start processes in the body with `safe_environment`, also those that libraries start.

    multiprocessing takes no environment: its processes (spawned ones, the fork server, the resource tracker) begin with
    `import multiprocessing`, in the current folder first, and then take over `sys.path`.
    """
    before = {name: os.environ.get(name) for name in (_SAFE_PATH, _PATH)}
    interactive = "" in sys.path
    sys.path[:] = [entry for entry in sys.path if entry]
    _set_environment({name: safe_environment().get(name) for name in before})
    try:
        yield
    finally:
        _set_environment(before)
        if interactive:
            sys.path.insert(0, "")


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
