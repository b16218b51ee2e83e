"""Who shares a piece of work: processes that this one starts, or the ranks that torchrun or accelerate started."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from ailora.errors import AiloraError, InputError

Job = TypeVar("Job")
Made = TypeVar("Made")

#: A rank waits this long for the others: the largest models take hours.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Team:
    """This process among the ranks.

    Attributes:
        rank: from 0.
        size: how many ranks there are.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the process that claims the folder and writes what is made of all parts."""
        return self.rank == 0

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this rank, of jobs in the order of falling cost."""
        return list(jobs[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that all ranks share: if it fails on one, all learn why.

        Raises:
            AiloraError: it failed here, or on another rank.
        """
        failure: Exception | None = None
        try:
            yield
        except (AiloraError, OSError) as error:
            failure = error
        said: list[str | None] = [None] * self.size
        if self.size > 1:
            dist.all_gather_object(said, None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, text in enumerate(said):
            if text is not None:
                raise AiloraError(f"rank {rank} failed: {text}")

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums of numbers over all ranks."""
        if self.size == 1:
            return dict(numbers)
        all_of: list[Any] = [None] * self.size
        dist.all_gather_object(all_of, dict(numbers))
        return {name: sum(each[name] for each in all_of) for name in numbers}


@contextmanager
def joined() -> Iterator[Team]:
    """The team of this process: its ranks if a launcher started several, else it alone."""
    size = _world_size()
    if dist.is_initialized():
        yield Team(dist.get_rank(), dist.get_world_size())
    elif size > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Team(dist.get_rank(), size)
        finally:
            dist.destroy_process_group()
    else:
        yield Team(0, 1)


def _world_size() -> int:
    """How many ranks a launcher started.

    Raises:
        InputError: its variables are there in part: they may be left from something else.
    """
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    values = {name: os.environ[name] for name in names if name in os.environ}
    size = values.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    if not size.isdigit() or len(values) < len(names):
        missing = ", ".join(name for name in names if name not in values) or "no number in WORLD_SIZE"
        raise InputError(
            f"WORLD_SIZE={size} says that a launcher started several ranks, but {missing} is missing: start with "
            "torchrun, or unset WORLD_SIZE"
        )
    return int(size)


def run_in_processes(run: Callable[[Job], Made], jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Made]]:
    """Run every job in processes that end with this one and share the cores; results come as they are made.

    Args:
        run: a function of a module, as processes import it.
        jobs: what it is called with; they travel to the processes.
        workers: how many processes.

    Raises:
        AiloraError: a worker was killed.
    """
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(threads,)) as pool:
        pending = {pool.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise AiloraError(
                "a worker was killed, perhaps for want of memory: take fewer; the same command goes on from here"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    # scipy brings a BLAS of its own, with threads of its own.
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process behind when the one that started this was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
