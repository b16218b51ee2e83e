"""The training batches that a method may look at before training begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Batches:
    """The batches of the first epoch, as the trainer feeds them: the same ones, in the same order, in every iteration.

    Dicts of tensors with the labels, on the device that trains. Where several processes train, each has its share.

    Args:
        make: makes the trainer's loader; called when the batches are first needed.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = self._loader
        loader.set_epoch(0)
        try:
            for batch in loader:
                yield dict(batch)
        finally:
            # accelerate would take a loader that was left in the middle for the one that is being iterated over.
            if loader in loader.gradient_state.dataloader_references:
                loader.end()

    @property
    def _loader(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made
