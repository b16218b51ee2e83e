"""Apply overrides such as `adapter.rank=4` to configurations."""

from __future__ import annotations

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.plain_data import validate_plain_data
from ailora.recipes.config.yaml_file import parse_yaml
from ailora.redaction import mask_override


def apply_override(raw: dict[str, object], override: str) -> None:
    """Apply an override to the content of a configuration.

    Args:
        raw: Content of a configuration; changed in place, except for its sections, which are replaced by copies.
        override: `dotted.key=value` with a YAML value.

    Raises:
        InputError: The override has no `=` or no key, the value is not YAML, or a parent in the key is not a section.
    """
    key, equals, value = override.partition("=")
    shown_override = mask_override(override)
    where = f"override {shorten(shown_override, 100)}"
    if not equals or not key:
        raise InputError(f"{where} is not of the form dotted.key=value")
    try:
        validate_plain_data(key, "its key")
        set_dotted(raw, key, parse_yaml(value))
    except InputError as error:
        # The error may quote the value, so if the override is masked, give only the possible reasons.
        is_masked = shown_override != repr(override)
        reason = "the value is not YAML, or a parent in the key is not a section" if is_masked else error
        raise InputError(f"{where}: {reason}") from None


def set_dotted(raw: dict[str, object], key: str, value: object) -> None:
    """Set a dotted key in the content of a configuration.

    Args:
        raw: Content of a configuration; changed in place, except for its sections, which are replaced by copies.
            Missing sections are added.
        key: Section names and a key, separated by dots.
        value: Value to set.

    Raises:
        InputError: A parent in the key is not a section.
    """
    section = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        child = section.get(parent)
        if not isinstance(child, dict | None):
            raise InputError(f"{parent!r} is not a section")
        # Copy the section, because a YAML alias makes several keys share one dict.
        child = dict(child or {})
        section[parent] = child
        section = child
    section[leaf] = value
