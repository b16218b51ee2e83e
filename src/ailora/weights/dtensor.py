"""Tensors that an engine spreads over processes (DTensors of FSDP2 and of tensor parallelism): whole, and spread again.

Where a tensor is spread, every function here is collective: all processes of its mesh call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from ailora.errors import ModelError


def any_dtensor(tensors: Iterable[Tensor]) -> bool:
    """Whether an engine has spread any of some tensors."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on this process, with gradients to its parts; a plain tensor is that itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    computes_on = tensor.device_mesh.device_type
    # What FSDP2 offloads to the CPU is gathered by the backend of the accelerator.
    near = tensor if tensor.device.type in (computes_on, "meta") else cast(DTensor, tensor.to(computes_on))
    return near.full_tensor()


def validate_unsharded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor that must be all there.

    Raises:
        ModelError: an engine takes the tensor apart in a way of its own. ZeRO-3 marks it (`ds_id`): it gathers it for a
            forward pass, but would write its parts to files under their own names.
    """
    if hasattr(tensor, "ds_id") or tensor.shape != torch.Size(shape):
        raise ModelError(
            f"a factor {tuple(shape)} of the adapter was partitioned by an engine under which the anchored form does "
            "not work (ZeRO-3 of DeepSpeed, FSDP1). Use FSDP2, DDP or ZeRO-2; or form='stock', which is the same "
            "file, trained whole"
        )
    return tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as another one is: the value of its mesh's first process. Plain where that is plain."""
    if not isinstance(like, DTensor):
        return tensor
    spread = distribute_tensor(tensor.detach(), like.device_mesh, like.placements)
    return spread if like.is_meta else spread.to(like.device)


def replicate_on_mesh_of(tensor: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """A whole tensor, replicated over the mesh that one of its parts is spread over; plain where none is.

    A state dict of a sharded model holds no plain tensors: loaders ask each for its mesh.
    """
    mesh = next((part.device_mesh for part in parts if isinstance(part, DTensor)), None)
    return tensor if mesh is None else DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
