"""One trial: a run of a recipe in a process of its own, and what is kept of it."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ailora.recipes import catalog
from ailora.recipes.config import load_config
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.schema import RunConfig

#: Facts of a finished run that the storage keeps, so that a study is read without its folders.
_KEPT = (
    "metrics",
    "forgetting",
    "history",
    "steps",
    "trainable_parameters",
    "total_parameters",
    "adapter_bytes",
    "init_seconds",
    "train_seconds",
    "peak_memory_bytes",
)


class TrialError(Exception):
    """A trial that has failed; another attempt would fail as well."""


class _Diverged(Exception):
    pass


class _StopOnNaN(TrainerCallback):
    """Ends a run whose validation loss is not a number: it would only go on to cost time."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise _Diverged(f"the validation loss is {loss} at step {state.global_step}")


def run_trial(config: RunConfig, keep: str) -> dict[str, Any]:
    """Run a recipe; the same call after a kill continues from the last checkpoint.

    Args:
        config: the run's.
        keep: `nothing`, `adapter` or `all` of the model.

    Returns:
        What the storage keeps.

    Raises:
        Exception: whatever the run raises.
    """
    folder = RunFolder(config.output)
    started = time.perf_counter()
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    # A worker that was taken for dead may still be at it; then its result is taken.
    with filelock.FileLock(folder.path.with_suffix(".lock")):
        result = catalog.run(config, callbacks=[_StopOnNaN()])
        _tidy(folder, keep)
    seconds = time.perf_counter() - started
    return {name: result[name] for name in _KEPT if name in result} | {"seconds": seconds, "folder": str(folder.path)}


def _tidy(folder: RunFolder, keep: str) -> None:
    if keep == "all":
        return
    for made in (folder.checkpoints, folder.model, *([folder.adapter] if keep == "nothing" else [])):
        shutil.rmtree(made, ignore_errors=True)


def isolated(config: RunConfig, keep: str) -> dict[str, Any]:
    """`run_trial` in a process of its own: what it breaks is broken there, and its memory is its own.

    Raises:
        TrialError: the run raised an error, or its process was killed.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    alive, us = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, alive, config.model_dump(), keep))
    process.start()
    sender.close()
    alive.close()
    try:
        outcome, error = receiver.recv()
    except EOFError:
        process.join()
        raise TrialError(_death(process.exitcode)) from None
    finally:
        if process.is_alive():
            process.join(timeout=None if sys.exc_info()[0] is None else 0)
        if process.is_alive():
            process.kill()
            process.join()
        us.close()
    if error is not None:
        raise TrialError(error)
    return outcome


def _context() -> Any:
    """Processes that start in a moment: forked from a server that has imported everything and done nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _serve(sender: Connection, alive: Connection, config: dict[str, Any], keep: str) -> None:
    """The process of a trial: sends (outcome, None) or (None, error)."""
    # Ctrl-C is the worker's to answer; a worker that is killed takes its trial along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    output = Path(config["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    _speak_into(output.with_suffix(".log"))
    try:
        outcome = run_trial(load_config(config), keep)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        sender.send((None, _described(error)))
    else:
        sender.send((outcome, None))


def _end_with(alive: Connection) -> None:
    try:
        alive.recv()
    except (EOFError, OSError):
        os._exit(1)


def _speak_into(log: Path) -> None:
    """What the run prints goes to a file: several run at once."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _described(error: BaseException) -> str:
    if isinstance(error, _Diverged):
        return f"diverged: {error}"
    return f"{type(error).__name__}: {error}"


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process of the run was ended by {name}{hint}"
    return f"the process of the run ended with code {exit_code}"
