"""Writing the stock files of an adapter, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from ailora.atomic_io import replacing_file
from ailora.safetensors_io import TensorSpec, header_bytes, tensor_bytes
from ailora.safetensors_io.header import TORCH_DTYPES

#: dtype of torch -> the file's word for it.
WORDS = {dtype: word for word, dtype in TORCH_DTYPES.items()}


def write_tensors(file: Path, planned: Iterable[TensorSpec], make: Callable[[str], Tensor]) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        file: where.
        planned: what it holds, in its order.
        make: makes the tensor of a name when its turn comes.
    """
    planned = list(planned)
    with replacing_file(file) as stream:
        stream.write(header_bytes(planned, {"format": "pt"}))
        for entry in planned:
            tensor = make(entry.name)
            assert tuple(tensor.shape) == entry.shape
            stream.write(tensor_bytes(tensor.to(TORCH_DTYPES[entry.dtype])))
