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
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.run_folder import RunFolder

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


class TrialPruned(Exception):
    """A trial that was ended early because others are better."""


#: (step, validation loss) -> whether the run goes on
Judge = Callable[[int, float], bool]


class _Watch(TrainerCallback):
    """Ends a run whose validation loss is not a number, or that is judged not worth going on."""

    def __init__(self, judge: Judge | None) -> None:
        self.judge = judge

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        loss = (metrics or {}).get("eval_loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrialError(f"diverged: the validation loss is {loss} at step {state.global_step}")
        if self.judge is not None and not self.judge(state.global_step, loss):
            raise TrialPruned(f"pruned at step {state.global_step} with a validation loss of {loss:.4f}")


def run_trial(config: RunConfig, keep: str, judge: Judge | None = None) -> dict[str, Any]:
    """Run a recipe; the same call after a kill continues from the last checkpoint.

    Args:
        config: the run's.
        keep: `nothing`, `adapter` or `all` of the model.
        judge: asked at every evaluation whether to go on; None: always.

    Returns:
        What the storage keeps.

    Raises:
        TrialError: the validation loss became NaN.
        TrialPruned: it was judged not worth going on.
        Exception: whatever the run raises.
    """
    folder = RunFolder(config.output)
    started = time.perf_counter()
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    # A worker that was taken for dead may still be at it; then its result is taken.
    with filelock.FileLock(folder.path.with_suffix(".lock")):
        result = registry.run(config, callbacks=[_Watch(judge)])
        _tidy(folder, keep)
    seconds = time.perf_counter() - started
    return {name: result[name] for name in _KEPT if name in result} | {"seconds": seconds, "folder": str(folder.path)}


def _tidy(folder: RunFolder, keep: str) -> None:
    if keep == "all":
        return
    for made in (folder.checkpoints, folder.model, *([folder.adapter] if keep == "nothing" else [])):
        shutil.rmtree(made, ignore_errors=True)


def isolated(config: RunConfig, keep: str, judge: Judge | None = None) -> dict[str, Any]:
    """`run_trial` in a process of its own: what it breaks is broken there, and its memory is its own.

    Raises:
        TrialError: the run raised an error, or its process was killed.
        TrialPruned: it was judged not worth going on.
    """
    context = _context()
    ours, theirs = context.Pipe()
    alive, us = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve,
        args=(theirs, alive, config.model_dump()),
        kwargs={"keep": keep, "judged": judge is not None},
    )
    process.start()
    theirs.close()
    alive.close()
    try:
        while True:
            kind, *content = ours.recv()
            if kind == "evaluated":
                ours.send(judge is None or judge(*content))
                continue
            if kind == "outcome":
                return content[0]
            raise (TrialPruned if kind == "pruned" else TrialError)(content[0])
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


def _context() -> Any:
    """Processes that start in a moment: forked from a server that has imported everything and done nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _serve(worker: Connection, alive: Connection, config: dict[str, Any], *, keep: str, judged: bool) -> None:
    """The process of a trial: tells the worker its outcome, its error, or asks it whether to go on."""

    def ask(step: int, loss: float) -> bool:
        worker.send(("evaluated", step, loss))
        return worker.recv()

    # Ctrl-C is the worker's to answer; a worker that is killed takes its trial along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    output = Path(config["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    _speak_into(output.with_suffix(".log"))
    try:
        worker.send(("outcome", run_trial(load_config(config), keep, ask if judged else None)))
    except TrialPruned as pruned:
        worker.send(("pruned", str(pruned)))
    except TrialError as error:
        worker.send(("error", str(error)))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        worker.send(("error", f"{type(error).__name__}: {error}"))


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


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process of the run was ended by {name}{hint}"
    return f"the process of the run ended with code {exit_code}"
