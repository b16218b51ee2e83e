"""Overrides of configurations: values of dotted keys."""

from __future__ import annotations

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.plain_data import validate_plain_data
from ailora.recipes.config.yaml_file import parse_yaml
from ailora.redaction import mask_override


def apply_override(raw: dict[str, object], override: str) -> None:
    """Apply an override to plain data, in place.

    Args:
        raw: content of a configuration.
        override: `dotted.key=value` with a YAML value.

    Raises:
        InputError: The override is not of this form, its value is not YAML, or its key passes through a value.
    """
    key, equals, value = override.partition("=")
    shown_override = mask_override(override)
    named = f"override {shorten(shown_override, 100)}"
    if not equals or not key:
        raise InputError(f"{named} is not of the form dotted.key=value")
    try:
        validate_plain_data(key, "its key")
        set_dotted(raw, key, parse_yaml(value))
    except InputError as error:
        reason = error if shown_override == repr(override) else "its value is not YAML, or a part of its key no section"
        raise InputError(f"{named}: {reason}") from None


def set_dotted(raw: dict[str, object], key: str, value: object) -> None:
    """Set a dotted key of plain data, in place.

    Args:
        raw: content of a configuration; missing sections are added.
        key: names of sections and a key, with dots between them.
        value: value to set.

    Raises:
        InputError: A part of the key names a value, and not a section.
    """
    section = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        below = section[parent]
        if not isinstance(below, dict):
            raise InputError(f"{parent!r} has no keys below it")
        section = below
    section[leaf] = value
