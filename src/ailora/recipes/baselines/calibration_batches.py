"""Training batches for methods that read data before training begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader


class Batches:
    """Batches of the first epoch in the trainer's order, the same in every iteration.

    A batch is a dict of tensors, labels included, on the device of training. Each process iterates over its share.

    Args:
        make_loader: returns the trainer's loader; called when batches are first needed.
    """

    def __init__(self, make_loader: Callable[[], DataLoader[Any]]) -> None:
        self._make_loader = make_loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader: Any = self._loader
        loader.set_epoch(0)
        try:
            for batch in loader:
                yield dict(batch)
        finally:
            # accelerate would take a loader left in the middle of an iteration for the active one.
            if loader in loader.gradient_state.dataloader_references:
                loader.end()

    @cached_property
    def _loader(self) -> DataLoader[Any]:
        # Made late: most methods read no batch, and a loader costs a trainer.
        return self._make_loader()
