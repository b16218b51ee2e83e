"""Training batches for inits that read data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader


class Batches:
    """Batches of the first epoch in the trainer's order, identical in every iteration.

    A batch is a dict of tensors, including labels, on the training device. Each process iterates over its own batches.

    Args:
        make_loader: Function that builds the trainer's data loader; called on first use.
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
            # Without end(), accelerate would still treat a loader as active after its iteration stopped early.
            if loader in loader.gradient_state.dataloader_references:
                loader.end()

    @cached_property
    def _loader(self) -> DataLoader[Any]:
        # Build the loader on first use, because most methods read no batches, and building a loader needs a trainer.
        return self._make_loader()
