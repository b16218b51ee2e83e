"""Commands in processes of their own that kill themselves at a chosen step, as `kill -9` would.

A step is anything that Python does to a file: an audit hook sees every open, rename, removal and new folder. The
processes are forked by a server that has imported everything, so that hundreds of them take a minute.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ailora.checkpoints
from ailora.checkpoints import checkpoint_writer

_STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tests.checkpoints.command_kills", "ailora.checkpoints.initialize", "ailora.checkpoints.merge_adapter"]
)

Command = tuple[str, tuple[Any, ...], dict[str, Any]]


def run(command: Command, out: Path, *, at: int | None = None, largest: int | None = None) -> tuple[int, int]:
    """Run a command to its end, or to the step `at`; its exit code, and how many steps it took where it ended.

    Args:
        command: A function of `ailora.checkpoints`, what stands before `out`, and keywords.
        out: The folder to write.
        at: Kill it there.
        largest: Bytes that a file may have: a full disk.
    """
    steps = _CONTEXT.Value("i", 0)
    process = _CONTEXT.Process(target=_command, args=(command, str(out), at, largest, steps))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, steps.value


def run_and_kill(command: Command, out: Path, delay: float, how: signal.Signals = signal.SIGKILL) -> int:
    """Run a command and send it a signal after some seconds; its exit code."""
    started = _CONTEXT.Event()
    process = _CONTEXT.Process(target=_command, args=(command, str(out), None, None, None, started))
    process.start()
    started.wait()
    assert process.pid is not None
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.kill(process.pid, how)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _command(command: Command, out: str, at: int | None, largest: int | None, steps: Any, started: Any = None) -> None:
    name, first, options = command
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    # The shards of the tests are small: note every tensor, not one in 256 MiB.
    checkpoint_writer._SYNC_BYTES = 1
    function: Callable[..., Any] = getattr(ailora.checkpoints, name)
    taken = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal taken
        if event in _STEPS and out in str(arguments[0]):
            if taken == at:
                os.kill(os.getpid(), signal.SIGKILL)
            taken += 1

    if started is not None:
        started.set()
    sys.addaudithook(hook)
    function(*first, out, **options)
    if steps is not None:
        steps.value = taken
