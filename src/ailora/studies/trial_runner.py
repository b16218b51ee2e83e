"""Run a trial in a separate process."""

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
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import filelock
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ailora.atomic_io import refuse_link
from ailora.child_environment import safe_import_path
from ailora.errors import describe_out_of_memory
from ailora.formatting import format_signal
from ailora.recipes import registry
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.trial import TrialResult


class TrialError(Exception):
    """Failure of a trial that would recur in another attempt."""


class TrialPruned(Exception):
    """End of a trial that was stopped early because its peers are better."""


#: (step, validation loss) -> whether the run continues.
ShouldContinue = Callable[[int, float], bool]


class _PruningCallback(TrainerCallback):
    """End a run if its validation loss is not finite, or if the worker prunes the trial."""

    def __init__(self, should_continue: ShouldContinue | None) -> None:
        self.should_continue = should_continue

    # transformers passes these arguments by name and by position.
    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        loss = (metrics or {}).get("eval_loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrialError(f"diverged: the validation loss is {loss} at step {state.global_step}")
        if self.should_continue is not None and not self.should_continue(state.global_step, loss):
            raise TrialPruned(f"pruned at step {state.global_step} with a validation loss of {loss:.4f}")


def run_trial(
    config: RunConfig, keep: str, should_continue: ShouldContinue | None = None, *, prefix: RunPrefix | None = None
) -> TrialResult:
    """Run a recipe. After a kill, the same call resumes from the last checkpoint.

    Args:
        config: Configuration of the run.
        keep: Part of the model to keep: `nothing`, `adapter` or `all`. All files of a prefix are kept.
        should_continue: Called at every evaluation; None to always continue.
        prefix: First steps of the run, to train only these; None for the full run. A later call with a longer prefix
            or for the full run resumes at the end of this prefix.

    Returns:
        The result of the run.

    Raises:
        TrialError: The validation loss is not finite.
        TrialPruned: The trial was pruned.
        Exception: The run raised an error.
    """
    folder = RunFolder(config.output)
    started = time.perf_counter()
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    callbacks = [_PruningCallback(should_continue)]
    # Another worker, considered dead for lack of heartbeats, may still run this trial: wait for it, and use its result.
    with filelock.FileLock(folder.path.with_suffix(".lock")):
        if prefix is None:
            results = registry.run(config, callbacks)
            _remove_unkept(folder, keep)
        else:
            results = _summarize_prefix(registry.run_prefix(config, prefix, callbacks))
    seconds = time.perf_counter() - started
    return TrialResult.from_dict({**results, "seconds": seconds, "folder": str(folder.path)})


def _summarize_prefix(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the evaluations of a prefix in the format of `result.json`."""
    last = {name: value for name, value in history[-1].items() if name not in ("step", "epoch")}
    return {"metrics": {"validation": last}, "history": history, "steps": history[-1]["step"]}


def _remove_unkept(folder: RunFolder, keep: str) -> None:
    if keep == "all":
        return
    for path in (folder.checkpoints, folder.model, *([folder.adapter] if keep == "nothing" else [])):
        shutil.rmtree(path, ignore_errors=True)


def run_in_subprocess(
    config: RunConfig, keep: str, should_continue: ShouldContinue | None = None, *, prefix: RunPrefix | None = None
) -> TrialResult:
    """Call `run_trial` in a separate process, which isolates crashes and memory.

    Args:
        config: Configuration of the run.
        keep: Part of the model to keep: `nothing`, `adapter` or `all`.
        should_continue: Called in this process at every evaluation; None to always continue.
        prefix: First steps of the run, to train only these; None for the full run.

    Returns:
        The result of the run.

    Raises:
        TrialError: The run raised an error, or its process was killed.
        TrialPruned: The trial was pruned.
    """
    context = _multiprocessing_context()
    connection, child_connection = context.Pipe()
    process = context.Process(
        target=_trial_main,
        args=(child_connection, config),
        kwargs={"keep": keep, "may_end_early": should_continue is not None, "prefix": prefix},
    )
    with safe_import_path():
        process.start()
    # If this process kept the child's end open, `recv` would wait forever for a killed child.
    child_connection.close()
    try:
        while True:
            match connection.recv():
                case TrialResult() as result:
                    return result
                case Exception() as error:
                    raise error
                case step, loss:
                    connection.send(should_continue is None or should_continue(step, loss))
                case message:
                    raise AssertionError(f"unexpected message of a trial: {message!r}")
    # A process killed while it waits for an answer breaks the connection.
    except (EOFError, ConnectionError):
        process.join()
        raise TrialError(_exit_reason(process.exitcode)) from None
    finally:
        # A process that sent its result ends by itself, and is waited for. If an exception is being raised, the process
        # may still train, and is killed.
        if process.is_alive():
            process.join(timeout=None if sys.exc_info()[0] is None else 0)
        if process.is_alive():
            process.kill()
            process.join()


def _multiprocessing_context() -> ForkServerContext | SpawnContext:
    """Return a context whose processes start quickly: forks of a server that has already imported the packages.

    Where this is not possible, each process imports the packages itself.
    """
    # bitsandbytes and torchao, which PEFT imports, ask CUDA for its devices. After this, CUDA refuses to work in forks.
    initializes_cuda = any(find_spec(name) for name in ("bitsandbytes", "torchao"))
    if "forkserver" not in multiprocessing.get_all_start_methods() or (initializes_cuda and torch.cuda.device_count()):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _trial_main(
    connection: Connection, config: RunConfig, *, keep: str, may_end_early: bool, prefix: RunPrefix | None
) -> None:
    """Run a trial in its own process, and send its result or error to the worker, the process that started this one.

    If `may_end_early`, ask the worker at each evaluation whether to continue.
    """

    def ask(step: int, loss: float) -> bool:
        connection.send((step, loss))
        return connection.recv()

    # Only the worker handles Ctrl-C. If the worker is killed, the trial must end too, or two attempts would write to
    # the same folder.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _redirect_output(output.with_suffix(".log"))
    try:
        connection.send(run_trial(config, keep, ask if may_end_early else None, prefix=prefix))
    except (TrialError, TrialPruned) as end:
        connection.send(end)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        connection.send(TrialError(describe_out_of_memory(error) or f"{type(error).__name__}: {error}"))


def _exit_with_parent() -> None:
    """Wait until the worker ends or is killed, and end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _redirect_output(log: Path) -> None:
    """Redirect standard output and standard error to the trial's log, because several trials run at once."""
    descriptor = refuse_link(str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _exit_reason(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = format_signal(-exit_code)
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process of the run was ended by signal {name}{hint}"
    return f"the process of the run ended with code {exit_code}"
