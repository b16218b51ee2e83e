"""Read single tensors from a safetensors file, without the bytes of other tensors.

Files are not memory-mapped. To read some tensors of a file, a memory map with readahead reads 1.4 times the requested
bytes, and a memory map without readahead reads page by page, at a sixth of the speed. If the file shrinks, access to a
memory map also kills the process (SIGBUS).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ailora.errors import InputError
from ailora.safetensors_io.header import StoredTensor


def read_tensor(stored: StoredTensor) -> Tensor:
    """Read a tensor.

    Raises:
        InputError: The file cannot be read or has shrunk since its header was read, or the dtype is not supported.
    """
    dtype = stored.torch_dtype
    return _read_bytes(stored, 0, stored.nbytes).view(dtype).reshape(stored.shape)


def read_rows(stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Read some rows of a tensor.

    Args:
        stored: The tensor, with at least one dimension.
        start: First row, an index of the first dimension.
        stop: End of the rows, exclusive.

    Returns:
        Rows (stop - start, ...).

    Raises:
        InputError: The file cannot be read or has shrunk since its header was read, or the dtype is not supported.
    """
    dtype = stored.torch_dtype
    row_bytes = dtype.itemsize * math.prod(stored.shape[1:])
    rows = _read_bytes(stored, start * row_bytes, (stop - start) * row_bytes)
    return rows.view(dtype).reshape(stop - start, *stored.shape[1:])


def read_blocks(stored: StoredTensor, entries: int) -> Iterator[Tensor]:
    """Read a tensor as flat blocks, with a single block in memory at a time.

    Args:
        stored: The tensor.
        entries: Number of entries in a block.

    Yields:
        Blocks (entries,). The last may be shorter.

    Raises:
        InputError: The file cannot be read or has shrunk since its header was read, or the dtype is not supported.
    """
    dtype = stored.torch_dtype
    block_bytes = entries * dtype.itemsize
    for offset in range(0, stored.nbytes, block_bytes):
        yield _read_bytes(stored, offset, min(block_bytes, stored.nbytes - offset)).view(dtype)


def _read_bytes(stored: StoredTensor, offset: int, count: int) -> Tensor:
    """Read `count` bytes of a tensor, from an offset within the tensor."""
    # Memory from torch is aligned for all dtypes; offsets in a file need not be.
    buffer = torch.empty(count, dtype=torch.uint8, device="cpu")
    unread = buffer.numpy().data  # memoryview of the bytes still to read
    try:
        with stored.file.open("rb", buffering=0) as stream:
            # Without readahead, the system reads only the requested bytes, at the same speed.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            stream.seek(stored.start + offset)
            while unread:
                count_read = stream.readinto(unread)
                if not count_read:
                    raise InputError(f"{stored.file} has shrunk: tensor {stored.name!r} ends at byte {stored.stop}")
                unread = unread[count_read:]
    except OSError as error:
        raise InputError(f"cannot read {stored.file}: {error.strerror or error}") from None
    return buffer
