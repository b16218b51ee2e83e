"""Reading single tensors: only their bytes are touched."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from ailora.errors import InputError
from ailora.shards.header import Header, StoredTensor, read_header


def read_tensor(stored: StoredTensor) -> Tensor:
    """A tensor, mapped into memory: its pages are read when they are used, and given back with the tensor.

    Raises:
        InputError: the file cannot be read, has shrunk since its header was read, or the dtype is unknown to torch.
    """
    dtype = stored.torch_dtype
    if stored.size == 0:
        return torch.empty(stored.shape, dtype=dtype)
    offset = stored.start - stored.start % mmap.ALLOCATIONGRANULARITY
    try:
        with stored.file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < stored.stop:
                raise InputError(f"{stored.file} has shrunk: tensor {stored.name!r} ends at byte {stored.stop}")
            # A private copy on write: torch warns of buffers that it may not write to.
            mapped = mmap.mmap(stream.fileno(), stored.stop - offset, access=mmap.ACCESS_COPY, offset=offset)
    except OSError as error:
        raise InputError(f"cannot read {stored.file}: {error.strerror or error}") from None
    within = stored.start - offset
    if within % dtype.itemsize:
        # Torch asks for aligned elements, the format does not.
        buffer, within = bytearray(mapped[within:]), 0
        mapped.close()
    else:
        buffer = mapped
    count = stored.size // dtype.itemsize
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=within).reshape(stored.shape)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], Header]:
    """All tensors of a file, mapped, and its header.

    Raises:
        InputError: as `read_header` and `read_tensor`.
    """
    header = read_header(file)
    return {name: read_tensor(stored) for name, stored in header.tensors.items()}, header
