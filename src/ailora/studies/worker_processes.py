"""Processes of workers on this machine: started together, replaced if they die, stopped with their parent."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ailora.atomic_io import format_json, refuse_link
from ailora.checkpoints.output_path import writing
from ailora.child_environment import safe_environment
from ailora.errors import InputError
from ailora.formatting import format_signal, shorten
from ailora.redaction import mask_url
from ailora.studies.trial import Status
from ailora.studies.trial_storage import TrialStorage

#: Interval between checks of the workers.
_POLL_INTERVAL_S = 0.5
#: Exit code of a worker with invalid input; a restart would fail again.
_INVALID_INPUT_EXIT_CODE = 2
#: Limit for consecutive worker deaths while no trial advances, per worker.
_MAX_FRUITLESS_DEATHS = 5


class WorkerInput(Protocol):
    """Input of workers: a study file, or the request of `ailora tune`."""

    @property
    def output(self) -> str:
        """Folder of the study or search; the logs of workers are in its folder `workers`."""
        ...

    def model_dump(self, *, by_alias: bool, context: Mapping[str, Any]) -> dict[str, Any]:
        """Convert to plain data, with secrets if the context has `secrets: True`."""
        ...


def run_workers(storage: TrialStorage, config: WorkerInput, count: int, on_poll: Callable[[], None]) -> None:
    """Run workers on a study until all trials have ended, and replace workers that die.

    Args:
        storage: Trials of the study.
        config: Study file, or request of `ailora tune`.
        count: Number of workers.
        on_poll: Called regularly, to show the progress.

    Raises:
        InputError: A worker refuses to start, or workers keep dying while no trial advances.
        KeyboardInterrupt: The user interrupted the study; running trials return to the queue.
    """
    logs = Path(config.output) / "workers"
    with writing(logs):
        logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{number}.log" for number in range(count)]
    workers = {log: _start_worker(storage, config, log, count) for log in files}
    fruitless_deaths, last_attempts = 0, _count_attempts(storage)
    try:
        while workers:
            time.sleep(_POLL_INTERVAL_S)
            on_poll()
            for log, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                _close(workers.pop(log))
                if code == 0:
                    continue
                attempts = _count_attempts(storage)
                fruitless_deaths = fruitless_deaths + 1 if attempts == last_attempts else 1
                last_attempts = attempts
                if code == _INVALID_INPUT_EXIT_CODE or fruitless_deaths > count * _MAX_FRUITLESS_DEATHS:
                    raise InputError(f"a worker ended with {_describe_exit(code)}{_last_line(log)}: see {log}")
                workers[log] = _start_worker(storage, config, log, count)
    finally:
        # All inputs are closed before the first wait, so the workers stop at the same time.
        for worker in workers.values():
            _close(worker)
        for worker in workers.values():
            worker.wait()


def _start_worker(storage: TrialStorage, config: WorkerInput, log: Path, count: int) -> subprocess.Popen[bytes]:
    """Start a worker. It stops when its standard input ends, so it also stops if this process is killed.

    The first line of the input contains the URL and the study file with their secrets. Secrets must appear neither in
    the process list nor in the storage. See `ailora.cli.study_progress.read_handover`.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    with writing(log), open(log, "ab", opener=refuse_link) as output:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "ailora", "study", "work", mask_url(storage.url), storage.name, "--tied"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # Each worker gets its share of the cores, unless the user has set a number of threads.
            env={"OMP_NUM_THREADS": str(threads), **safe_environment(), **_device_environment(int(log.stem), count)},
            # In the session of this process, Ctrl-C would also interrupt the workers. Closing their input stops them.
            start_new_session=True,
        )
    assert worker.stdin is not None
    handover = {"storage": storage.url, "study": config.model_dump(by_alias=True, context={"secrets": True})}
    # The worker may be dead already; `run_workers` then replaces it.
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(format_json(handover).encode() + b"\n")
        worker.stdin.flush()
    return worker


def _device_environment(number: int, count: int) -> dict[str, str]:
    """Assign a GPU to each of several workers; a single worker sees all GPUs, like a run."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if count > 1 and len(devices) > 1 else {}


def _close(worker: subprocess.Popen[bytes]) -> None:
    """Close the standard input of a worker, which stops the worker if it still runs."""
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()


def _count_attempts(storage: TrialStorage) -> Counter[Status]:
    """Count attempts by status of their trial; equal counts at two deaths mean no progress between them."""
    counts: Counter[Status] = Counter()
    for trial in storage.trials():
        counts[trial.status] += trial.attempts
    return counts


def _describe_exit(code: int) -> str:
    return f"code {code}" if code > 0 else f"signal {format_signal(-code)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f" ({shorten(last, 300)})" if last else ""
