"""Versions of the libraries that determine an adapter and the trials of a study."""

from __future__ import annotations

from importlib.metadata import version

_LIBRARIES = ("ailora", "torch", "peft", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    """Return the installed versions: library -> version."""
    return {name: version(name) for name in _LIBRARIES}
