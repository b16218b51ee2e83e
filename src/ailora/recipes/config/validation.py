"""Base classes, types and error messages for configuration sections."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from ailora.errors import InputError, unknown_name
from ailora.formatting import truncate
from ailora.redaction import mask_value, without_secrets

Text = Annotated[str, pydantic.Field(min_length=1)]
# Strict, because pydantic would otherwise accept `true` as 1.
Count = Annotated[int, pydantic.Field(strict=True, ge=1)]


def field(allowed: str, default: object = ..., **limits: Any) -> Any:
    """Define a key of a section.

    Args:
        allowed: Description of the allowed values, for error messages.
        default: Value of an absent key; `...` makes the key mandatory.
        limits: Constraints of `pydantic.Field`.

    Returns:
        The pydantic field.
    """
    return pydantic.Field(default=default, description=allowed, **limits)


class Section(pydantic.BaseModel, extra="forbid", frozen=True):
    """Section of a configuration; unknown keys are refused."""


class StoredSection(Section, frozen=True):
    """Section stored in the database of a study. Dumps omit secrets unless their context has `secrets: True`."""

    @pydantic.model_serializer(mode="wrap")
    def _serialize(
        self, handler: pydantic.SerializerFunctionWrapHandler, info: pydantic.SerializationInfo
    ) -> dict[str, Any]:
        """Omit secrets unless the context of the dump has `secrets: True`."""
        plain = handler(self)
        return plain if (info.context or {}).get("secrets") else without_secrets(plain)


def format_validation_error(
    error: pydantic.ValidationError, raw: object, section: type[pydantic.BaseModel]
) -> InputError:
    """Format the first validation error with its key, value and allowed values.

    Args:
        error: Error raised by pydantic.
        raw: Validated data.
        section: Schema of the data.

    Returns:
        The error to raise.
    """
    value: Any = raw
    first = error.errors()[0]
    path: list[str] = []
    allowed = ""
    for part in map(str, first["loc"]):
        fields = {info.alias or name: info for name, info in section.model_fields.items()}
        if part not in fields:
            kind = f"key in {'.'.join(path)}" if path else "key"
            return unknown_name(kind, part, fields)
        path.append(part)
        value = value.get(part)
        field_info = fields[part]
        # Further parts of the location are branches of a union or items of a list, not keys.
        if not (isinstance(field_info.annotation, type) and issubclass(field_info.annotation, Section)):
            allowed = field_info.description or ""
            break
        section = field_info.annotation
        keys = [info.alias or name for name, info in section.model_fields.items()]
        allowed = f"a section with the keys {', '.join(keys)}"
    state = "is missing" if first["type"] == "missing" else f"is {short_repr(value, path[-1])}"
    return InputError(f"configuration key {'.'.join(path)} {state}; expected {allowed}")


def short_repr(value: object, key: str = "") -> str:
    """Return the `repr` of a value for error messages, in at most 80 characters and without secrets.

    Args:
        value: Value to show.
        key: Configuration key of the value; keys such as `token` mark secrets.

    Returns:
        The shortened `repr`.
    """
    return truncate(mask_value(key, value), 80)
