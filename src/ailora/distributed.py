"""Processes that work together: the ranks of a launcher, and workers that this process starts.

The ranks are those of `torch.distributed`, which a Trainer, accelerate or `init_process_group_if_launched` has set up.
Without a process group this process is alone, and every function here returns at once. accelerate's `PartialState` is
not asked: making it starts a process group, and whoever makes it first decides the backend of a later Trainer.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from ailora.child_environment import safe_import_path
from ailora.errors import AiloraError, InputError, ModelError

T = TypeVar("T")
Result = TypeVar("Result")

#: How long a rank waits for the others: the largest models take hours.
_GROUP_TIMEOUT = timedelta(hours=24)


def process_index() -> int:
    """Return the number of this process among the ranks, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def process_count() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main() -> bool:
    """Return whether this process claims folders and writes what all ranks made."""
    return process_index() == 0


def wait_for_everyone() -> None:
    """Wait until all ranks are here."""
    if process_count() > 1:
        dist.barrier()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def init_process_group_if_launched() -> Iterator[None]:
    """Have a process group while the body runs, if a launcher started several ranks; an existing one is taken.

    Raises:
        InputError: The launcher's variables are incomplete.
    """
    if _is_initialized() or _launched_count() == 1:
        yield
        return
    dist.init_process_group("gloo", timeout=_GROUP_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _launched_count() -> int:
    """Return how many ranks a launcher started.

    Raises:
        InputError: Its variables are there in part: they may be left from something else.
    """
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    missing = [name for name in names if name not in os.environ]
    if missing or not size.isdigit():
        raise InputError(
            f"WORLD_SIZE={size} says that a launcher started several ranks, but "
            f"{', '.join(missing) or 'a number'} is missing: start with torchrun, or unset WORLD_SIZE"
        )
    return int(size)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Run a body on all ranks; if it fails on one, all raise.

    Raises:
        AiloraError: It failed on another rank. Where it failed itself, the error is raised as it is.
    """
    failure: Exception | None = None
    try:
        yield
    except (AiloraError, OSError) as error:
        failure = error
    messages = gather_object(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise AiloraError(f"rank {rank} failed: {message}")


@contextmanager
def on_main(context: AbstractContextManager[T]) -> Iterator[T]:
    """Enter a context on the main process alone; all ranks get its value, or fail with it.

    Raises:
        AiloraError: The context could not be entered.
    """
    with ExitStack() as stack:
        with raise_on_all_ranks():
            value = stack.enter_context(context) if is_main() else None
        yield broadcast(value)


def broadcast(value: T | None) -> T:
    """Return the main process's value on all ranks."""
    values: list[Any] = [value]
    if process_count() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_object(value: T) -> list[T]:
    """Return the values of all ranks, in their order."""
    values: list[Any] = [value] * process_count()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of numbers over all ranks."""
    parts = gather_object(dict(numbers))
    return {name: sum(part[name] for part in parts) for name in numbers}


def local_shard(items: Sequence[T]) -> list[T]:
    """Return the items of this rank, dealt in turn, so that items in the order of falling cost are spread evenly."""
    return list(items[process_index() :: process_count()])


def split_between_processes(items: Sequence[T]) -> list[tuple[T, bool]]:
    """Deal items in turn, as many to every rank: sharded models compute together, so the last are dealt again.

    Returns:
        Items of this rank, and whether each counts; those that fill up do not.
    """
    rank, count = process_index(), process_count()
    numbers = [rank + k * count for k in range(-(-len(items) // count))]
    return [(items[min(n, len(items) - 1)], n < len(items)) for n in numbers]


def gather(results: Sequence[T]) -> list[T]:
    """Return the results of all ranks, in the order of the items that `split_between_processes` was given.

    Args:
        results: One for each item of this rank that counts.
    """
    parts, count = gather_object(list(results)), process_count()
    return [parts[number % count][number // count] for number in range(sum(map(len, parts)))]


def compute_on_rank0_and_broadcast(compute: Callable[[], T]) -> T:
    """Compute something on every rank, and return what the first rank computed: bit for bit the same on all.

    Every rank computes, as a sharded weight is gathered by all of them together. What another rank computes does not
    count, nor whether it fails: with `cpu_ram_efficient_loading` only the first one of a machine has read the weights.

    Args:
        compute: Returns something that can be pickled. Its tensors arrive on the CPU of other ranks.

    Raises:
        ModelError: It failed on the first rank; there the error itself is raised.
    """
    if process_count() == 1:
        return compute()
    value: Any = None
    failure: Exception | None = None
    try:
        value = compute()
    except Exception as error:  # whatever it is, the others wait for an answer
        failure = error
    message = failure and f"{type(failure).__name__}: {failure}"
    content, message = broadcast((_to_bytes(value), message) if is_main() else None)
    if message is not None:
        raise failure if is_main() and failure else ModelError(f"on the first rank: {message}")
    return value if is_main() else torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _to_bytes(value: object) -> bytes:
    """Pickle by torch, which lets the reader choose the device of tensors."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def run_in_processes(run: Callable[[T], Result], tasks: Sequence[T], *, workers: int) -> Iterator[tuple[T, Result]]:
    """Run every task in processes that end with this one and share the cores; results come as they are made.

    Args:
        run: A function of a module, as processes import it.
        tasks: What it is called with; pickled.
        workers: How many processes.

    Raises:
        AiloraError: A worker was killed.
    """
    threads = max(1, torch.get_num_threads() // workers)
    with ExitStack() as stack:
        # The pool starts its processes while it is given tasks, and none later.
        with safe_import_path():
            pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(threads,))
            stack.enter_context(pool)
            pending = {pool.submit(run, task): task for task in tasks}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise AiloraError(
                "a worker was killed, perhaps for want of memory: take fewer; the same command goes on from here"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(threads: int) -> None:
    # scipy brings a BLAS of its own, with threads of its own.
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Leave no process behind when the one that started this was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
