"""Headers of safetensors files, validated before any data is read.

A file consists of eight bytes with the length of the header, the header as JSON, and the data. Every tensor has a
dtype, a shape and a range of bytes. The ranges cover the data without gap or overlap.
Source: https://huggingface.co/docs/safetensors

This module does not use the `safetensors` library: the library's errors do not name the tensor, and if a name occurs
twice, the library silently uses the last entry.
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

import torch

from ailora.errors import InputError, unknown_name

#: dtype in the file -> bits per entry. Tensors with a dtype missing in `TORCH_DTYPES` can be copied, but not read.
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

#: dtype in the file -> dtype of torch. Only tensors with these dtypes can be read.
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

#: Name in options and configurations -> dtype of torch.
_REQUESTED_DTYPES: Mapping[str, torch.dtype] = {
    **{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16},
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
}

#: Largest header that the reference implementation accepts.
_MAX_HEADER_BYTES = 100_000_000
#: Largest number of dimensions of a torch tensor.
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor in a safetensors file.

    Attributes:
        name: Name in the file.
        dtype: Name of the dtype in the file, such as `BF16`.
        shape: Shape of the tensor.
        file: Path of the file.
        start: Offset of the first byte, from the beginning of the file.
        stop: Offset of the byte after the last, from the beginning of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.stop - self.start

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in torch.

        Raises:
            InputError: The dtype is not in `TORCH_DTYPES`.
        """
        if self.dtype not in TORCH_DTYPES:
            raise InputError(
                f"{self.file}: tensor {self.name!r} has the dtype {self.dtype}, which ailora cannot read; "
                f"readable dtypes: {', '.join(TORCH_DTYPES)}"
            )
        return TORCH_DTYPES[self.dtype]

    @property
    def floating(self) -> bool:
        """Whether the dtype is a floating-point type of 16 bits or more."""
        # float8 is excluded, because float8 tensors are quantized weights.
        return self.dtype in ("F64", "F32", "F16", "BF16")

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype} in {self.file}"


@dataclass(frozen=True)
class Header:
    """Validated header of a safetensors file.

    Attributes:
        tensors: Stored tensors by name, in file order.
        metadata: Entry `__metadata__` of the header, from strings to strings.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def parse_dtype(name: str) -> torch.dtype:
    """Return the dtype of torch for a name: fp32, bf16, fp16, float32, bfloat16 or float16.

    Raises:
        InputError: The name is unknown.
    """
    if not isinstance(name, str) or name not in _REQUESTED_DTYPES:
        raise unknown_name("dtype", name, _REQUESTED_DTYPES)
    return _REQUESTED_DTYPES[name]


def read_header(file: Path) -> Header:
    """Read and validate the header of a safetensors file.

    Returns:
        The header, with tensors in file order.

    Raises:
        InputError: The file is missing or is not a regular file, or the header is invalid. The message names the file
            and, for an invalid entry, the tensor.
    """
    try:
        status = os.stat(file)
        # Opening a named pipe would wait forever for a writer.
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file} is not a regular file")
        with file.open("rb") as stream:
            length = _parse_header_length(stream.read(8), status.st_size, file)
            header_json = stream.read(length)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    if len(header_json) < length:
        raise InputError(f"{file} is truncated: its header ends after {len(header_json)} of {length} bytes")
    try:
        entries = json.loads(header_json, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: the header is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise InputError(f"{file}: the header is not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_encodable(key + value) for key, value in metadata.items()
    ):
        raise InputError(f"{file}: __metadata__ in the header must map strings to strings")
    data_start = 8 + length
    tensors = [_parse_entry(name, entry, file, data_start) for name, entry in entries.items()]
    # Entries may come in any order. An empty tensor starts where the next tensor starts, so tensors with equal starts
    # are sorted by their stops.
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _validate_coverage(tensors, file, data_start, status.st_size)
    return Header({tensor.name: tensor for tensor in tensors}, metadata)


def _parse_header_length(prefix: bytes, file_size: int, file: Path) -> int:
    if len(prefix) < 8:
        raise InputError(f"{file} is not a safetensors file: it has only {len(prefix)} bytes")
    (length,) = struct.unpack("<Q", prefix)
    # This check comes before memory is allocated, because a damaged file can declare up to 2^64 bytes.
    if length > min(_MAX_HEADER_BYTES, file_size - 8):
        raise InputError(
            f"{file} is not a safetensors file, or is truncated: expected a header of {length} bytes, but a header has "
            f"at most {_MAX_HEADER_BYTES} bytes, and the file has {file_size} bytes"
        )
    return length


class _DuplicateError(ValueError):
    """A key occurs twice in a JSON object."""


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values:
            raise _DuplicateError(f"{name[:200]!r} occurs twice")
        values[name] = value
    return values


def _parse_entry(name: str, entry: object, file: Path, data_start: int) -> StoredTensor:
    """Parse the header entry of a tensor.

    Raises:
        InputError: The entry is invalid.
    """
    # Messages shorten strings from the file, because a string may have any length.
    where = f"{file}: tensor {name[:200]!r}"
    if not _is_encodable(name):
        raise InputError(f"{where} has an invalid name: not encodable in UTF-8")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise InputError(f"{where} has no dtype, no shape or no data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise InputError(f"{where} has the unknown dtype {str(dtype)[:40]!r}; expected one of {', '.join(DTYPE_BITS)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(_is_size(side) for side in shape):
        raise InputError(f"{where} has the shape {str(shape)[:80]}; expected a list of sizes of at least 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise InputError(f"{where} has the offsets {str(offsets)[:80]}; expected [start, stop]")
    start, stop = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if (stop - start) * 8 != bits:
        raise InputError(
            f"{where}, {dtype} {str(shape)[:80]}, takes {bits // 8} bytes, but its offsets span {stop - start}"
        )
    return StoredTensor(name, dtype, tuple(shape), file, data_start + start, data_start + stop)


def _is_encodable(name: str) -> bool:
    # JSON can escape half of a surrogate pair, which UTF-8 cannot encode.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_size(value: object) -> bool:
    # `type` instead of `isinstance`, because JSON's true is an `int` in Python. torch stores sizes as
    # signed 64-bit integers.
    return type(value) is int and 0 <= value < 2**63


def _validate_coverage(tensors: list[StoredTensor], file: Path, data_start: int, file_size: int) -> None:
    """Validate that tensors, sorted by their offsets, cover the data without gap or overlap.

    Raises:
        InputError: Two tensors overlap, bytes belong to no tensor, or the file is truncated.
    """
    position, previous = data_start, "the header"
    for tensor in tensors:
        if tensor.start < position:
            raise InputError(f"{file}: tensor {tensor.name!r} overlaps {previous}")
        if tensor.start > position:
            gap = tensor.start - position
            raise InputError(f"{file}: {gap} bytes between {previous} and tensor {tensor.name!r} belong to no tensor")
        if tensor.stop > file_size:
            raise InputError(
                f"{file} is truncated: tensor {tensor.name!r} ends at byte {tensor.stop}, but the file has {file_size}"
            )
        position, previous = tensor.stop, f"tensor {tensor.name!r}"
    if position != file_size:
        raise InputError(f"{file} has {file_size - position} bytes after {previous}, which belong to no tensor")
