"""Collective operations for processes started by a launcher, and a pool of worker processes.

Ranks are those of `torch.distributed`. A Trainer, accelerate or `init_process_group_if_launched` initializes the
process group. Without a process group, this process is the only rank, and collective operations return immediately.
accelerate's `PartialState` is not used, because creating the state starts a process group. A later Trainer would then
be bound to the device and the backend of this group.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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

#: Longest time that a rank waits for all ranks. Decomposing the largest models takes hours.
_GROUP_TIMEOUT = timedelta(hours=24)


def process_index() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def process_count() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0, which claims folders and writes results."""
    return process_index() == 0


def wait_for_everyone() -> None:
    """Wait until all ranks call this function."""
    if process_count() > 1:
        dist.barrier()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def init_process_group_if_launched() -> Generator[None, None, None]:
    """Initialize a process group for the body if a launcher started several ranks and no group exists yet.

    Raises:
        InputError: The environment variables of the launcher are incomplete.
    """
    if _is_initialized() or _launched_count() == 1:
        yield
        return
    # Use gloo even with an accelerator: ranks only wait for each other and exchange small objects, never weights.
    dist.init_process_group("gloo", timeout=_GROUP_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _launched_count() -> int:
    """Return the number of ranks started by a launcher.

    Raises:
        InputError: `WORLD_SIZE` is not a number, or another variable of the launcher is missing, for example because a
            different program set `WORLD_SIZE`.
    """
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    missing = [name for name in names if name not in os.environ]
    if missing or not size.isdigit():
        problem = f"the launcher did not set {', '.join(missing)}" if missing else "it is not a number"
        raise InputError(
            f"WORLD_SIZE={size} means that a launcher started several ranks, but {problem}: start with torchrun, or "
            "unset WORLD_SIZE"
        )
    return int(size)


@contextmanager
def raise_on_all_ranks() -> Generator[None, None, None]:
    """Raise on all ranks if the body raises an `AiloraError` or an `OSError` on any rank.

    Raises:
        AiloraError: The body raised such an error on another rank. The failed rank itself raises the original error.
    """
    # Without this exchange of errors, all other ranks would wait for the failed rank until the timeout.
    failure: Exception | None = None
    try:
        yield
    except (AiloraError, OSError) as error:
        failure = error
    # None for a rank without a failure.
    messages = gather_object(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise AiloraError(f"rank {rank} failed: {message}")


@contextmanager
def on_main(context: AbstractContextManager[T]) -> Generator[T, None, None]:
    """Enter a context on the main process only, and broadcast the context's value to all ranks.

    Yields:
        Value of the context.

    Raises:
        AiloraError: The main process cannot enter the context.
    """
    with ExitStack() as stack:
        with raise_on_all_ranks():
            value = stack.enter_context(context) if is_main() else None
        yield broadcast(value)


def broadcast(value: T | None) -> T:
    """Return the value of the main process on all ranks. The value has to be picklable."""
    values: list[Any] = [value]
    if process_count() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_object(value: T) -> list[T]:
    """Return the values of all ranks on every rank, in the order of the ranks."""
    values: list[Any] = [value] * process_count()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of each number over all ranks."""
    parts = gather_object(dict(numbers))
    return {name: sum(part[name] for part in parts) for name in numbers}


def local_shard(items: Sequence[T]) -> list[T]:
    """Return this rank's share of the items, split round-robin."""
    # Round-robin instead of contiguous blocks: items sorted by cost are then spread evenly.
    return list(items[process_index() :: process_count()])


def split_between_processes(items: Sequence[T]) -> list[tuple[T, bool]]:
    """Split items round-robin into equal numbers for all ranks, padded with the last item.

    Returns:
        Pairs of an item of this rank and a flag. The flag is False for padding.
    """
    rank, count = process_index(), process_count()
    # All ranks get equally many items: the forward pass of a sharded model is collective, and would wait forever for a
    # rank without items.
    indices = [rank + k * count for k in range(-(-len(items) // count))]
    return [(items[min(index, len(items) - 1)], index < len(items)) for index in indices]


def gather(results: Sequence[T]) -> list[T]:
    """Gather the results of all ranks, in the order of the items given to `split_between_processes`.

    Args:
        results: Results of this rank, without those of padding.

    Returns:
        Results of all items, on every rank.
    """
    parts, count = gather_object(list(results)), process_count()
    return [parts[index % count][index // count] for index in range(sum(map(len, parts)))]


def compute_and_broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Compute a value on every rank, and return the value of rank 0 on all ranks, bit for bit.

    Every rank computes, because gathering a sharded weight is collective. Values and errors of ranks other than 0 are
    ignored: with `cpu_ram_efficient_loading`, only the first rank of a machine has read the weights.

    Args:
        compute: Function that returns a picklable value. Ranks other than 0 receive tensors of the value on the CPU.

    Returns:
        Value of rank 0.

    Raises:
        ModelError: The computation failed on rank 0. Rank 0 itself raises the original error.
    """
    if process_count() == 1:
        return compute()
    value: Any = None
    failure: Exception | None = None
    try:
        value = compute()
    # Catch errors of any type, because all other ranks wait for the broadcast.
    except Exception as error:
        failure = error
    message = failure and f"{type(failure).__name__}: {failure}"
    content, message = broadcast((_to_bytes(value), message) if is_main() else None)
    if message is not None:
        raise failure if is_main() and failure else ModelError(f"on the first rank: {message}")
    if is_main():
        return value
    # Unpickling is safe here: the bytes come from rank 0 of this run, not from a file.
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _to_bytes(value: object) -> bytes:
    """Pickle a value with `torch.save`, so that `torch.load` can choose the device of tensors."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def run_in_processes(run: Callable[[T], Result], tasks: Sequence[T], *, workers: int) -> Iterator[tuple[T, Result]]:
    """Run tasks in worker processes. The workers share the cores, and end if this process ends.

    Args:
        run: Function at the top level of a module, so that workers can import it.
        tasks: Picklable arguments. Each is passed to a call of `run`.
        workers: Number of processes.

    Yields:
        Tasks and results in the order of completion.

    Raises:
        AiloraError: A worker was killed. Errors of `run` itself are raised unchanged.
    """
    threads = max(1, torch.get_num_threads() // workers)
    # Creating the pool starts multiprocessing's resource tracker, and submitting tasks starts all workers. All start in
    # the safe import path. Workers are spawned, because torch's threads do not survive a fork.
    with safe_import_path():
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(threads,))
    try:
        with safe_import_path():
            pending = {pool.submit(run, task): task for task in tasks}
        for future in as_completed(pending):
            yield pending[future], future.result()
    except BrokenProcessPool:
        raise AiloraError(
            "a worker was killed, perhaps for lack of memory: use fewer workers; the same command resumes from here"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(threads: int) -> None:
    # Limiting the threads of torch is not enough: scipy has a BLAS of its own, whose threads would keep cores busy
    # while they wait for each other.
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent cannot stop its workers, so they would continue for hours.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
