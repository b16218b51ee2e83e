"""A study from its file to its end: make or find it in its storage, and let workers run it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

from ailora.checkpoints.output_dir import describe_differences
from ailora.errors import InputError
from ailora.studies.conditions import Grid
from ailora.studies.study_config import StudyConfig
from ailora.studies.trial_storage import Store
from ailora.studies.worker import extend

#: What may not change while a study is in its storage: its trials would not be comparable.
_FIXED = ("base", "metric", "match_parameters", "pruning")
#: Seconds between looks at the workers.
_GLANCE = 0.5


def open_study(config: StudyConfig) -> tuple[Store, Grid]:
    """The study of a file: made if its storage does not have it, extended if the file has grown.

    Raises:
        InputError: the file is wrong, or no longer fits its storage (which keys differ); the storage cannot be
            reached. The storage is unchanged then.
    """
    grid = Grid(config)
    assert config.storage is not None
    assert config.name is not None
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(output / ".study.lock"):
        plain = config.model_dump(by_alias=True)
        store = Store.find(config.storage, config.name)
        if store is None:
            store = Store.create(config.storage, config.name, plain)
        else:
            _validate_same_study(config, store)
            store.rewrite(plain)
        extend(store, grid)
    return store, grid


def found_study(config: StudyConfig) -> tuple[Store, Grid]:
    """The study of a file, as it is in its storage; nothing is made or changed.

    Raises:
        InputError: the file is wrong, or no longer fits its storage; there is no such study.
    """
    grid = Grid(config)
    assert config.storage is not None
    assert config.name is not None
    store = Store.open(config.storage, config.name)
    _validate_same_study(config, store)
    return store, grid


def stored_study(url: str, name: str) -> tuple[Store, Grid]:
    """A study as its storage knows it, for workers elsewhere and for reports.

    Raises:
        InputError: the storage cannot be reached, or holds no such study.
    """
    store = Store.open(url, name)
    return store, Grid(StudyConfig.model_validate(store.study))


def run_workers(store: Store, count: int, watch: Callable[[], None]) -> None:
    """Let so many processes work on a study until nothing is left; one that dies is replaced.

    Args:
        store: the study's.
        count: of workers.
        watch: called again and again meanwhile, to show how far it is.

    Raises:
        InputError: workers end at once, again and again.
        KeyboardInterrupt: what runs waits again in the storage.
    """
    logs = Path(store.study["output"]) / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    workers = {number: _start(store, logs / f"{number}.log", count) for number in range(count)}
    born = dict.fromkeys(workers, time.monotonic())
    try:
        while workers:
            time.sleep(_GLANCE)
            watch()
            for number, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                stopped = workers.pop(number)
                assert stopped.stdin is not None
                stopped.stdin.close()
                if code != 0:
                    log = logs / f"{number}.log"
                    if time.monotonic() - born[number] < 5 * _GLANCE or code == 2:
                        raise InputError(f"a worker ended with code {code} as it began: see {log}")
                    workers[number], born[number] = _start(store, log, count), time.monotonic()
    finally:
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in workers.values():
            worker.wait()


def _start(store: Store, log: Path, count: int) -> subprocess.Popen[bytes]:
    """A worker that stops when its standard input ends: also when this process is killed."""
    threads = max(1, (os.cpu_count() or 1) // count)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ailora.cli", "study", "work", store.url, store.name, "--tied"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # The cores are shared out; a user's own setting goes before.
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            # Ctrl-C reaches the workers once, from here.
            start_new_session=True,
        )


def _validate_same_study(config: StudyConfig, store: Store) -> None:
    """Refuse a file under which a task, a method or the base means another thing than in the storage."""
    now, there = config.model_dump(by_alias=True), store.study
    changed = [
        text
        for key in _FIXED
        if (text := describe_differences(_nested(key, now.get(key)), _nested(key, there.get(key))))
    ]
    for key in ("tasks", "methods"):
        ours, theirs = _labelled(now[key]), _labelled(there[key])
        for label in ours.keys() & theirs.keys():
            if text := describe_differences(
                _nested(f"{key}.{label}", ours[label]), _nested(f"{key}.{label}", theirs[label])
            ):
                changed.append(text)
    if changed:
        raise InputError(
            f"the study {store.name!r} no longer fits its storage ({'; '.join(changed)}): choose another output or name"
        )


def _nested(key: str, value: Any) -> dict[str, Any]:
    return {key: value}


def _labelled(entries: Any) -> dict[str, Any]:
    """Tasks or methods of a study file: label -> overrides."""
    pairs = [entry if isinstance(entry, dict) else {entry: None} for entry in entries or []]
    return dict(entries) if isinstance(entries, dict) else {label: one[label] for one in pairs for label in one}
