"""Write safetensors files: the header from shapes alone, then one tensor in memory at a time."""

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
from ailora.safetensors_io.header import BITS, SAFETENSORS_DTYPES, TORCH_DTYPES, StoredTensor


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written.

    Attributes:
        name: Its name in the file.
        dtype: The file's name of its dtype, such as `BF16`.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_tensor(cls, name: str, tensor: Tensor | StoredTensor) -> TensorSpec:
        """Describe a tensor that will be written as it is, under a name."""
        dtype = SAFETENSORS_DTYPES[tensor.dtype] if isinstance(tensor, Tensor) else tensor.dtype
        return cls(name, dtype, tuple(tensor.shape))

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def write_tensors(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[Tensor]) -> None:
    """Replace a safetensors file atomically.

    Args:
        file: The file.
        specs: What it holds, in its order.
        tensors: A tensor for each spec, in any floating dtype; taken one at a time.
    """
    with replacing_file(file) as stream:
        stream.write(header_bytes(specs, {"format": "pt"}))
        for spec, tensor in zip(specs, tensors, strict=True):
            assert tuple(tensor.shape) == spec.shape
            stream.write(tensor_bytes(tensor.to(TORCH_DTYPES[spec.dtype])))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, as a file holds them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_bytes(tensors: Iterable[TensorSpec | StoredTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return length and header of a file with these tensors, padded to eight bytes, as the format recommends.

    Args:
        tensors: What the file will hold, in its order.
        metadata: Free text; transformers asks for `{"format": "pt"}`.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for tensor in tensors:
        start, stop = stop, stop + tensor.size
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
