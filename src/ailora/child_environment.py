"""Environment in which child processes do not import from the current folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

_SAFE_PATH_VARIABLE, _PYTHONPATH_VARIABLE = "PYTHONSAFEPATH", "PYTHONPATH"


def safe_environment() -> dict[str, str]:
    """Build an environment in which child processes do not import from the current folder.

    Returns:
        Environment of this process with `PYTHONSAFEPATH` set. `PYTHONPATH` has no empty entries, because these stand
        for the current folder. All other entries remain, because their folders may hold functions of the user.
    """
    environment = {**os.environ, _SAFE_PATH_VARIABLE: "1"}
    entries = [entry for entry in environment.pop(_PYTHONPATH_VARIABLE, "").split(os.pathsep) if entry]
    return environment | ({_PYTHONPATH_VARIABLE: os.pathsep.join(entries)} if entries else {})


@contextmanager
def safe_import_path() -> Generator[None, None, None]:
    """Set `safe_environment` for all child processes that start in the body, including those of libraries.

    multiprocessing has no argument for an environment. Its processes (spawned, fork server, resource tracker) first
    import multiprocessing, by default from the current folder, and only then copy `sys.path`.
    """
    previous = {name: os.environ.get(name) for name in (_SAFE_PATH_VARIABLE, _PYTHONPATH_VARIABLE)}
    # An interactive interpreter has an empty entry for the current folder, which child processes would copy.
    has_current_folder = "" in sys.path
    sys.path[:] = [entry for entry in sys.path if entry]
    _set_environment({name: safe_environment().get(name) for name in previous})
    try:
        yield
    finally:
        _set_environment(previous)
        if has_current_folder:
            sys.path.insert(0, "")


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
