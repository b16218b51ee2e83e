"""Schemas of configurations by recipe, and error messages of their validation."""

from __future__ import annotations

from typing import Any

import pydantic

from ailora.errors import InputError, unknown_name
from ailora.formatting import truncate
from ailora.recipes.config.classification_config import ClassificationConfig, DataConfig
from ailora.recipes.config.language_config import CausalLMConfig, LanguageConfig, PromptData, Seq2SeqConfig
from ailora.recipes.config.sections import AdapterConfig, DataSource, RunConfig, Section
from ailora.redaction import mask_value

__all__ = [
    "SCHEMAS",
    "AdapterConfig",
    "CausalLMConfig",
    "ClassificationConfig",
    "DataConfig",
    "DataSource",
    "LanguageConfig",
    "PromptData",
    "RunConfig",
    "Seq2SeqConfig",
    "format_validation_error",
    "short_repr",
    "validate_config",
]

#: Recipe -> schema of its configuration.
SCHEMAS: dict[str, type[RunConfig]] = {
    "classification": ClassificationConfig,
    "causal_lm": CausalLMConfig,
    "seq2seq": Seq2SeqConfig,
}


def validate_config(raw: dict[str, Any]) -> RunConfig:
    """Validate plain data against the schema of their recipe, without looking up names and paths.

    Args:
        raw: content of a configuration.

    Returns:
        The configuration, without derived values.

    Raises:
        InputError: A recipe or key is unknown or missing, or a value of the wrong type; the message names the allowed
            ones.
    """
    recipe = raw.get("recipe")
    if recipe is not None and recipe not in list(SCHEMAS):
        raise unknown_name("recipe", recipe, SCHEMAS)
    schema = SCHEMAS["classification" if recipe is None else recipe]
    try:
        return schema.model_validate(raw)
    except pydantic.ValidationError as error:
        raise format_validation_error(error, raw, schema) from None


def format_validation_error(
    error: pydantic.ValidationError, raw: object, section: type[pydantic.BaseModel]
) -> InputError:
    """Format the first error of a validation: its key, its value, and the description of the allowed values.

    Args:
        error: error of pydantic.
        raw: data that were validated.
        section: schema of the data.

    Returns:
        The error to raise.
    """
    value: Any = raw
    first = error.errors()[0]
    path: list[str] = []
    allowed = ""
    for part in map(str, first["loc"]):
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        if part not in fields:
            return unknown_name("key" + (f" in {'.'.join(path)}" if path else ""), part, fields)
        path.append(part)
        value = value.get(part)
        field = fields[part]
        # The rest of the location names branches of a union and items, which are no keys of a configuration.
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            allowed = field.description or ""
            break
        section = field.annotation
        allowed = "a section with keys of " + ", ".join(f.alias or n for n, f in section.model_fields.items())
    state = "is missing" if first["type"] == "missing" else f"is {short_repr(value, path[-1])}"
    return InputError(f"configuration key {'.'.join(path)} {state}; expected {allowed}")


def short_repr(value: object, key: str = "") -> str:
    """Return the `repr` of a value for error messages, in at most 80 characters and without secrets.

    Args:
        value: value to show.
        key: configuration key of the value, which may tell that it is a secret.

    Returns:
        The text.
    """
    return truncate(mask_value(key, value), 80)
