"""Reading single tensors: their bytes and no others.

Not through a memory map: where only some tensors of a file are wanted, the system reads ahead of a map and reads 1.4
times as many bytes as were asked for; told not to, it reads page by page, six times as slowly. A map also ends the
process if the file shrinks meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ailora.errors import InputError
from ailora.safetensors_io.header import StoredTensor


def read_tensor(stored: StoredTensor) -> Tensor:
    """A tensor, read into memory of its own.

    Raises:
        InputError: the file cannot be read, has shrunk since its header was read, or the dtype is unknown to torch.
    """
    dtype = stored.torch_dtype
    return _read(stored, 0, stored.size).view(dtype).reshape(stored.shape)


def read_rows(stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor, `start` to `stop` of its first side, and nothing else of it.

    Raises:
        InputError: as `read_tensor`.
    """
    dtype = stored.torch_dtype
    width = stored.size // stored.shape[0]
    return _read(stored, start * width, (stop - start) * width).view(dtype).reshape(stop - start, *stored.shape[1:])


def read_blocks(stored: StoredTensor, entries: int) -> Iterator[Tensor]:
    """A tensor as flat pieces of some entries each, one in memory at a time.

    Raises:
        InputError: as `read_tensor`.
    """
    dtype = stored.torch_dtype
    step = entries * dtype.itemsize
    for first in range(0, stored.size, step):
        yield _read(stored, first, min(step, stored.size - first)).view(dtype)


def _read(stored: StoredTensor, first: int, count: int) -> Tensor:
    """Bytes of a tensor, from its `first`."""
    buffer = torch.empty(count, dtype=torch.uint8)
    rest = buffer.numpy().data
    try:
        with stored.file.open("rb", buffering=0) as stream:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            stream.seek(stored.start + first)
            while rest:
                read = stream.readinto(rest)
                if not read:
                    raise InputError(f"{stored.file} has shrunk: tensor {stored.name!r} ends at byte {stored.stop}")
                rest = rest[read:]
    except OSError as error:
        raise InputError(f"cannot read {stored.file}: {error.strerror or error}") from None
    return buffer
