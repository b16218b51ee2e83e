"""SHA-256 digests of an adapter's files, kept in the header of its weights, and checked by every reader.

Any other program, such as PEFT's `save_pretrained`, writes a header of its own, so digests in the header never outlive
the tensors they describe.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME
from ailora.errors import InputError
from ailora.plan.adapter_metadata import METADATA_NAME
from ailora.safetensors_io import Header, TensorSpec, read_blocks, read_header, read_tensor, tensor_bytes, write_tensors

_LOG = logging.getLogger("ailora")
#: Key of the header's metadata, before the name of each file.
_KEY = "ailora_sha256"
_TENSORS_KEY = f"{_KEY}:tensors"
_DESCRIBED = (CONFIG_NAME, METADATA_NAME)
_BLOCK_ENTRIES = 2**20


def write_digests(folder: Path, pending: Mapping[str, bytes] | None = None) -> None:
    """Write the digests of an adapter's files into the header of its weights.

    Args:
        folder: Folder of the adapter. Without a weights file nothing is written.
        pending: Content by name of files to be written next.
    """
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        return
    header = read_header(file)
    contents = {name: (folder / name).read_bytes() for name in _DESCRIBED if (folder / name).is_file()}
    contents |= pending or {}
    metadata = {"format": "pt", _TENSORS_KEY: _hash_tensors(header)}
    # Sorted, as the pending files differ after a kill, and the same command has to write the same bytes.
    metadata |= {f"{_KEY}:{name}": hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}
    specs = [TensorSpec.from_tensor(name, stored) for name, stored in header.tensors.items()]
    write_tensors(file, specs, map(read_tensor, header.tensors.values()), metadata)


def validate_digests(folder: Path, header: Header) -> None:
    """Refuse changed tensors, and warn of changed files beside them.

    Adapters without digests pass: stock PEFT ones, and those of earlier versions.

    Args:
        folder: Folder of the adapter.
        header: Header of its weights.

    Raises:
        InputError: The tensors have changed since they were written.
    """
    expected = header.metadata.get(_TENSORS_KEY)
    if expected is None:
        return
    if _hash_tensors(header) != expected:
        raise InputError(
            f"{folder / WEIGHTS_NAME} is damaged: its tensors are not those that were written (SHA-256). Take another "
            "copy of the file; if a program of yours changed them, let it write the file without the metadata "
            f"{_TENSORS_KEY!r}, as safetensors.torch.save_file does"
        )
    for name in find_edited_files(folder, header) or ():
        _LOG.warning("%s is not as it was written with the weights beside it: edited, or damaged", folder / name)


def find_edited_files(folder: Path, header: Header) -> list[str] | None:
    """Find the files beside the weights that have changed since they were written with them.

    Args:
        folder: Folder of the adapter.
        header: Header of its weights.

    Returns:
        Names of the files. None if the weights have no digests.
    """
    if _TENSORS_KEY not in header.metadata:
        return None
    digests = {name: header.metadata.get(f"{_KEY}:{name}") for name in _DESCRIBED}
    return [
        name
        for name, digest in digests.items()
        if digest is not None
        and (folder / name).is_file()
        and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]


def _hash_tensors(header: Header) -> str:
    """Hash names, dtypes, shapes and bytes of all tensors; their order in the file does not count."""
    hashed = hashlib.sha256()
    for name, stored in sorted(header.tensors.items()):
        hashed.update(json.dumps([name, stored.dtype, stored.shape]).encode())
        for block in read_blocks(stored, _BLOCK_ENTRIES):
            hashed.update(tensor_bytes(block))
    return hashed.hexdigest()
