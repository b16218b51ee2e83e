"""SHA-256 digest of the tensors in a file, stored in the header of the file.

Programs other than ailora replace the whole header when they rewrite a file, so the digest disappears with the tensors
for which it was computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ailora.errors import InputError
from ailora.safetensors_io.header import Header, read_header
from ailora.safetensors_io.reader import read_blocks, read_tensor
from ailora.safetensors_io.writer import TensorSpec, tensor_bytes, write_tensors

#: Prefix of the digests' keys in the metadata of a header.
DIGEST_PREFIX = "ailora_sha256:"
_TENSORS_KEY = f"{DIGEST_PREFIX}tensors"
#: Number of entries hashed at a time: at most 8 MiB.
_BLOCK_ENTRIES = 2**20


def write_tensor_digest(file: Path, digests: Mapping[str, str] | None = None) -> None:
    """Write the digest of the tensors into the header, and replace the file atomically.

    Other metadata of the header, except `format`, are dropped.

    Args:
        file: Safetensors file.
        digests: Digests of accompanying files as hex, by file name.
    """
    header = read_header(file)
    metadata = {"format": "pt", _TENSORS_KEY: _hash_tensors(header)}
    metadata |= {f"{DIGEST_PREFIX}{name}": digest for name, digest in (digests or {}).items()}
    specs = [TensorSpec.from_tensor(name, stored) for name, stored in header.tensors.items()]
    write_tensors(file, specs, map(read_tensor, header.tensors.values()), metadata)


def has_tensor_digest(header: Header) -> bool:
    """Return whether a header contains a digest of the tensors."""
    return _TENSORS_KEY in header.metadata


def validate_tensor_digest(file: Path, header: Header) -> None:
    """Refuse tensors that differ from their digest. A header without a digest passes.

    Args:
        file: Safetensors file.
        header: Header of the file.

    Raises:
        InputError: The tensors have changed since the digest was written.
    """
    if has_tensor_digest(header) and _hash_tensors(header) != header.metadata[_TENSORS_KEY]:
        raise InputError(
            f"{file} is damaged: the tensors have changed since they were written (SHA-256). Restore the file from a "
            f"copy. A program that changes tensors on purpose must omit the metadata {_TENSORS_KEY!r}, as "
            "safetensors.torch.save_file does"
        )


def drop_digests(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a header without digests, for a file with changed tensors."""
    return {key: value for key, value in metadata.items() if not key.startswith(DIGEST_PREFIX)}


def _hash_tensors(header: Header) -> str:
    """Hash names, dtypes, shapes and bytes of all tensors, independent of their order in the file."""
    sha256 = hashlib.sha256()
    for name, stored in sorted(header.tensors.items()):
        sha256.update(json.dumps([name, stored.dtype, stored.shape]).encode())
        for block in read_blocks(stored, _BLOCK_ENTRIES):
            sha256.update(tensor_bytes(block))
    return sha256.hexdigest()
