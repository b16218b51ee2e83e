"""The header of a safetensors file, checked before a byte of data is read.

Format: eight bytes with the length of the header, the header as JSON, the data. Every tensor has a dtype, a shape and
the range of its bytes; the ranges follow each other without gap or overlap up to the end of the file.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ailora.errors import InputError, unknown_name

#: dtype in the file -> bits of an element. Those that torch does not know can be copied, not read.
BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

#: dtype in the file -> dtype of torch, for what is computed with.
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

#: dtype of torch -> dtype in the file.
SAFETENSORS_DTYPES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}

#: The dtypes that can be asked for, by the names that users give them.
_REQUESTED_DTYPES: Mapping[str, torch.dtype] = {
    **{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16},
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
}

#: The limit of the reference implementation.
_MAX_HEADER_BYTES = 100_000_000
#: torch has as many dimensions.
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        name: its name in the file.
        dtype: the file's word for its dtype, such as `BF16`.
        shape: its shape.
        file: the file.
        start: its first byte, from the beginning of the file.
        stop: the byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in torch.

        Raises:
            InputError: torch has none for it here.
        """
        if self.dtype not in TORCH_DTYPES:
            raise InputError(f"{self.file}: the tensor {self.name!r} is of dtype {self.dtype}, which is not read here")
        return TORCH_DTYPES[self.dtype]

    @property
    def floating(self) -> bool:
        """Whether it holds floating numbers of 16 bits or more: what is computed with, and not a quantized weight."""
        return self.dtype in ("F64", "F32", "F16", "BF16")

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype} in {self.file}"


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: by name, in the order of their bytes.
        metadata: free text by key.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def parse_dtype(name: str) -> torch.dtype:
    """Return the dtype that a name stands for: fp32, bf16, fp16, or torch's names.

    Raises:
        InputError: Another name.
    """
    if not isinstance(name, str) or name not in _REQUESTED_DTYPES:
        raise unknown_name("dtype", name, _REQUESTED_DTYPES)
    return _REQUESTED_DTYPES[name]


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        InputError: no such file, not a regular one, or its header lies; names the file and the tensor.
    """
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file} is not a regular file")
        with file.open("rb") as stream:
            raw = _raw_header(stream.read(8), status.st_size, file)
            text = stream.read(raw)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    if len(text) < raw:
        raise InputError(f"{file} is truncated: its header ends after {len(text)} of {raw} bytes")
    try:
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: the header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise InputError(f"{file}: the header is not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_text(key + value) for key, value in metadata.items()
    ):
        raise InputError(f"{file}: the header's __metadata__ is not a mapping of texts")
    first = 8 + raw
    tensors = [_stored(name, entry, file, first) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _validate_coverage(tensors, file, first, status.st_size)
    return Header({tensor.name: tensor for tensor in tensors}, metadata)


def _raw_header(prefix: bytes, file_size: int, file: Path) -> int:
    """The length of the header, which a lie could make larger than the file or the memory."""
    if len(prefix) < 8:
        raise InputError(f"{file} is no safetensors file: it has {len(prefix)} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER_BYTES, file_size - 8):
        raise InputError(
            f"{file} is no safetensors file, or truncated: it says that its header has {length} bytes, "
            f"the file has {file_size}"
        )
    return length


class _DuplicateError(ValueError):
    """A JSON object names something twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateError(f"{name[:200]!r} occurs twice")
        found[name] = value
    return found


def _stored(name: str, entry: Any, file: Path, first: int) -> StoredTensor:
    where = f"{file}: tensor {name[:200]!r}"
    if not _is_text(name):
        raise InputError(f"{where} has a name that is no text")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise InputError(f"{where} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InputError(f"{where} has the unknown dtype {str(dtype)[:40]!r}; known: {', '.join(BITS)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(_is_size(side) for side in shape):
        raise InputError(f"{where} has the shape {str(shape)[:80]}: a list of whole numbers was expected")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise InputError(f"{where} has the offsets {str(offsets)[:80]}: [start, stop] was expected")
    start, stop = offsets
    if (stop - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise InputError(
            f"{where}, {dtype} {str(shape)[:80]}, takes {math.prod(shape) * BITS[dtype] // 8} bytes, "
            f"its offsets hold {stop - start}"
        )
    return StoredTensor(name, dtype, tuple(shape), file, first + start, first + stop)


def _is_text(name: str) -> bool:
    """Whether it can be written again: JSON can say halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _validate_coverage(tensors: list[StoredTensor], file: Path, first: int, file_size: int) -> None:
    """The tensors fill the data from its first byte to its last."""
    reached, before = first, "the header"
    for tensor in tensors:
        if tensor.start < reached:
            raise InputError(f"{file}: tensor {tensor.name!r} overlaps {before}")
        if tensor.start > reached:
            raise InputError(f"{file}: {tensor.start - reached} bytes between {before} and tensor {tensor.name!r}")
        if tensor.stop > file_size:
            raise InputError(
                f"{file}: tensor {tensor.name!r} ends at byte {tensor.stop}, the file has {file_size}: it is truncated"
            )
        reached, before = tensor.stop, f"tensor {tensor.name!r}"
    if reached != file_size:
        raise InputError(f"{file} has {file_size - reached} bytes after {before}")
