"""Environment of child processes, in which Python does not import from the current folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

_SAFE_PATH, _PATH = "PYTHONSAFEPATH", "PYTHONPATH"


def safe_environment() -> dict[str, str]:
    """Build an environment for child processes, in which Python does not import from the current folder.

    Returns:
        This process's environment with `PYTHONSAFEPATH`. `PYTHONPATH` keeps its entries, where functions of the user
        are found, except empty entries, which stand for the current folder.
    """
    environment = {**os.environ, _SAFE_PATH: "1"}
    entries = [entry for entry in environment.pop(_PATH, "").split(os.pathsep) if entry]
    return environment | ({_PATH: os.pathsep.join(entries)} if entries else {})


@contextmanager
def safe_import_path() -> Generator[None, None, None]:
    """Context in which all child processes, including those of libraries, have the `safe_environment`.

    multiprocessing has no argument for an environment: its processes (spawned, fork server, resource tracker) begin
    with `import multiprocessing`, from the current folder first, and then copy `sys.path`.
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
