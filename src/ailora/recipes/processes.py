"""The processes of one run, whichever launcher started them; alone, each of these is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

Item = TypeVar("Item")


def is_main() -> bool:
    """Whether this process writes what the run writes."""
    return PartialState().is_main_process


def wait() -> None:
    """Wait until all processes are here."""
    PartialState().wait_for_everyone()


def shared_out(items: Sequence[Item]) -> list[tuple[Item, bool]]:
    """This process's share, dealt in turn.

    Every process gets as many, since sharded models compute together: the last items are dealt again as fillers.

    Returns:
        Items, and whether they count; fillers do not.
    """
    state = PartialState()
    rank, count = state.process_index, state.num_processes
    share = -(-len(items) // count)
    numbers = [rank + k * count for k in range(share)]
    return [(items[min(n, len(items) - 1)], n < len(items)) for n in numbers]


def collected(mine: Sequence[Item]) -> list[Item]:
    """What all processes made of their shares, in the order of the items that `shared_out` was given.

    Args:
        mine: a result for each item that counted.
    """
    count = PartialState().num_processes
    if count == 1:
        return list(mine)
    parts: list[list[Item]] = gather_object([list(mine)])
    total = sum(map(len, parts))
    return [parts[number % count][number // count] for number in range(total)]
