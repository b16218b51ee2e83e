"""Requests: all inputs that determine the result of a command, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ailora.formatting import truncate

_MAX_VALUE_CHARS = 60


def describe_differences(requested: Mapping[str, object], recorded: Mapping[str, object]) -> str:
    """Format the differences between two requests as dotted keys, each with both values.

    Args:
        requested: Request of the running command.
        recorded: Request of the command that first wrote to the folder.

    Returns:
        The differences. Empty if the requests are equal.
    """
    requested_values, recorded_values = flatten(requested), flatten(recorded)
    names = sorted(requested_values.keys() | recorded_values.keys())
    entries = [(name, recorded_values.get(name), requested_values.get(name)) for name in names]
    return "; ".join(
        f"{name}: {_shorten(before)} there, {_shorten(now)} now" for name, before, now in entries if before != now
    )


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings: dotted key -> value that is not a mapping."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, child in value.items():
        flat |= flatten(child, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _shorten(value: object) -> str:
    return truncate(repr(value), _MAX_VALUE_CHARS)


def digest_request(request: Mapping[str, object]) -> str:
    """Return the SHA-256 of a request as hex, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def read_file_state(file: Path) -> list[int]:
    """Return a file's size in bytes and modification time in ns, which reveal changes without reading the file."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
