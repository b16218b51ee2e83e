"""Processes that adapt one model together: what the first one makes is what all have."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ailora.errors import ModelError

Made = TypeVar("Made")


def as_first_rank(make: Callable[[], Made]) -> Made:
    """Make something on every rank, and take what the first rank made: bit for bit the same on all.

    Every rank makes it, as a sharded weight is gathered by all of them together. What another rank makes does not
    count, nor whether it fails: with `cpu_ram_efficient_loading` only the first one of a machine has read the weights.
    Collective where torch.distributed runs several ranks: all of them call this. Without, it is `make()`.

    Args:
        make: makes something that can be pickled. Its tensors come on the CPU where another rank made them.

    Raises:
        ModelError: it failed on the first rank; there it is the error of `make` itself.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return make()
    made: Any = None
    failure: Exception | None = None
    try:
        made = make()
    except Exception as error:  # whatever it is, the others wait for an answer
        failure = error
    leads = dist.get_rank() == 0
    sent: list[Any] = [(_to_bytes(made), failure and f"{type(failure).__name__}: {failure}") if leads else None]
    dist.broadcast_object_list(sent, src=0)
    content, said = sent[0]
    if said is not None:
        raise failure if leads and failure else ModelError(f"on the first rank: {said}")
    return made if leads else torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _to_bytes(made: object) -> bytes:
    """Pickled by torch, which lets the reader choose the device of tensors."""
    buffer = io.BytesIO()
    torch.save(made, buffer)
    return buffer.getvalue()
