"""DTensors of FSDP2 and tensor parallelism: gather, distribute and replicate tensors.

Gathering and distributing DTensors are collective operations: all processes of the mesh must take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from ailora.errors import ModelError


def any_dtensor(tensors: Iterable[Tensor]) -> bool:
    """Return whether any of the tensors is a DTensor."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a DTensor; gradients flow through. A plain tensor is returned unchanged."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh_device = tensor.device_mesh.device_type
    # FSDP2 may offload shards to the CPU, but only the backend of the mesh's device can gather.
    on_mesh = tensor if tensor.device.type in (mesh_device, "meta") else cast(DTensor, tensor.to(mesh_device))
    return on_mesh.full_tensor()


def validate_unsharded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor unchanged, or refuse a tensor partitioned by an engine other than FSDP2.

    Args:
        tensor: A gathered tensor.
        shape: Shape of the whole tensor.

    Raises:
        ModelError: The tensor is partitioned.
    """
    # ZeRO-3 marks partitioned parameters with `ds_id`. It gathers them for the forward pass, but saves the parts of a
    # factor separately.
    if hasattr(tensor, "ds_id") or tensor.shape != torch.Size(shape):
        raise ModelError(
            f"a factor {tuple(shape)} of the adapter was partitioned by an engine that does not support the anchored "
            "form (DeepSpeed ZeRO-3, FSDP1). Use FSDP2, DDP or ZeRO-2; or form='stock', which trains the factors of "
            "the file directly"
        )
    return tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Distribute a tensor from the first process over the mesh of `like`, or return it if `like` is not a DTensor."""
    if not isinstance(like, DTensor):
        return tensor
    distributed = distribute_tensor(tensor.detach(), like.device_mesh, like.placements)
    return distributed if like.is_meta else distributed.to(like.device)


def replicate_on_mesh_of(tensor: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """Replicate a tensor over the mesh of the parts it was computed from, or return it if no part is a DTensor."""
    # Loaders of sharded state dicts expect every tensor to have a mesh.
    mesh = next((part.device_mesh for part in parts if isinstance(part, DTensor)), None)
    return tensor if mesh is None else DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
