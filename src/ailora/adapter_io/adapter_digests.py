"""SHA-256 digests of an adapter's files, stored in the header of its weights file and validated on opening."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME
from ailora.plan.adapter_metadata import METADATA_NAME
from ailora.safetensors_io import Header
from ailora.safetensors_io.tensor_digest import (
    DIGEST_PREFIX,
    has_tensor_digest,
    validate_tensor_digest,
    write_tensor_digest,
)

_LOG = logging.getLogger("ailora")
_DIGESTED_FILES = (CONFIG_NAME, METADATA_NAME)


def write_digests(folder: Path, pending: Mapping[str, bytes] | None = None) -> None:
    """Write the digests of an adapter's files into the header of its weights file.

    Args:
        folder: Folder of the adapter. Without a weights file, nothing is written.
        pending: File name -> content, for files that are written later.
    """
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        return
    contents = {name: (folder / name).read_bytes() for name in _DIGESTED_FILES if (folder / name).is_file()}
    contents |= pending or {}
    # Sort the names, so that the header does not depend on how many files are still pending when a command resumes.
    write_tensor_digest(file, {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)})


def validate_digests(folder: Path, header: Header) -> None:
    """Refuse changed tensors, and warn of changes in the configuration or the metadata.

    Adapters without digests pass: PEFT and earlier versions of ailora write none.

    Args:
        folder: Folder of the adapter.
        header: Header of the weights file.

    Raises:
        InputError: The tensors differ from their digest.
    """
    validate_tensor_digest(folder / WEIGHTS_NAME, header)
    for name in find_edited_files(folder, header) or ():
        _LOG.warning(
            "%s has changed since it was written with the weights: it was edited, or is damaged", folder / name
        )


def find_edited_files(folder: Path, header: Header) -> list[str] | None:
    """Find changes of the configuration and the metadata since the weights were written.

    Args:
        folder: Folder of the adapter.
        header: Header of the weights file.

    Returns:
        Names of the changed files; missing files are ignored. None if the weights file has no digests.
    """
    if not has_tensor_digest(header):
        return None
    digests = {name: header.metadata.get(f"{DIGEST_PREFIX}{name}") for name in _DIGESTED_FILES}
    return [
        name
        for name, digest in digests.items()
        if digest is not None
        and (folder / name).is_file()
        and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]
