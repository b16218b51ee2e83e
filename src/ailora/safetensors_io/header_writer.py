"""The layout of a safetensors file that is going to be written, from shapes alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ailora.safetensors_io.header import BITS, StoredTensor


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written.

    Attributes:
        name: its name in the file.
        dtype: the file's word for its dtype.
        shape: its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as a file holds them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_bytes(tensors: Iterable[TensorSpec | StoredTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and header of a file with these tensors, in this order; padded to eight bytes, as the format recommends.

    Args:
        tensors: what the file will hold.
        metadata: free text; transformers asks for `{"format": "pt"}`.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for tensor in tensors:
        offsets = [reached, reached + tensor.size]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        reached += tensor.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
