"""Write safetensors files: first the header, from dtypes and shapes, then tensor by tensor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ailora.atomic_io import replacing_file
from ailora.safetensors_io.header import DTYPE_BITS, SAFETENSORS_DTYPES, TORCH_DTYPES, StoredTensor


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor to write.

    Attributes:
        name: Name in the file.
        dtype: Name of the dtype in the file, such as `BF16`.
        shape: Shape of the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_tensor(cls, name: str, tensor: Tensor | StoredTensor) -> TensorSpec:
        """Build the spec of a tensor that is written under `name`, with its own dtype and shape."""
        dtype = SAFETENSORS_DTYPES[tensor.dtype] if isinstance(tensor, Tensor) else tensor.dtype
        return cls(name, dtype, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_tensors(
    file: Path, specs: Sequence[TensorSpec], tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Replace a safetensors file atomically.

    Args:
        file: Path of the file.
        specs: Specs of the tensors, in file order.
        tensors: Tensors in the order of `specs`. Each is converted to the dtype of its spec. With a generator, only one
            tensor is in memory at a time.
        metadata: Contents of the `__metadata__` entry. None means `{"format": "pt"}`, which transformers requires.
    """
    with replacing_file(file) as stream:
        stream.write(header_bytes(specs, metadata or {"format": "pt"}))
        for spec, tensor in zip(specs, tensors, strict=True):
            assert tuple(tensor.shape) == spec.shape
            stream.write(tensor_bytes(tensor.to(TORCH_DTYPES[spec.dtype])))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the layout of the file."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_bytes(tensors: Iterable[TensorSpec | StoredTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Format the beginning of a file: the length of the header, and the header.

    Args:
        tensors: Tensors of the file, in file order.
        metadata: Contents of the `__metadata__` entry; transformers requires `{"format": "pt"}`. None omits the entry.

    Returns:
        The bytes; their number is a multiple of eight.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for tensor in tensors:
        start, stop = stop, stop + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
    header_json = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # The format recommends aligning data to eight bytes.
    header_json += b" " * (-len(header_json) % 8)
    return struct.pack("<Q", len(header_json)) + header_json
