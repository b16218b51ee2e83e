"""Configurations of runs: a section per concern, a schema per recipe."""

from __future__ import annotations

from typing import Any

import pydantic

from ailora.errors import InputError, unknown_name
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
    "explained",
    "shown",
    "validate",
]

#: recipe -> the schema of its configuration
SCHEMAS: dict[str, type[RunConfig]] = {
    "classification": ClassificationConfig,
    "causal_lm": CausalLMConfig,
    "seq2seq": Seq2SeqConfig,
}


def validate(raw: dict[str, Any]) -> RunConfig:
    """The configuration that plain data stand for; names and paths are not looked up yet.

    Raises:
        InputError: an unknown recipe or key, a missing one, or a value of another kind, with what is allowed.
    """
    recipe = raw.get("recipe")
    if recipe is not None and recipe not in list(SCHEMAS):
        raise unknown_name("recipe", recipe, SCHEMAS)
    schema = SCHEMAS["classification" if recipe is None else recipe]
    try:
        return schema.model_validate(raw)
    except pydantic.ValidationError as error:
        raise explained(error, raw, schema) from None


def explained(error: pydantic.ValidationError, raw: Any, section: type[pydantic.BaseModel]) -> InputError:
    """The first thing that is wrong, in our words: the key and what its field's description allows."""
    first = error.errors()[0]
    path: list[str] = []
    allowed = ""
    for part in map(str, first["loc"]):
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        if part not in fields:
            return unknown_name("key" + (f" in {'.'.join(path)}" if path else ""), part, fields)
        path.append(part)
        raw = raw.get(part)
        field = fields[part]
        # What follows in the location is pydantic's: which branch of a union, which item.
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            allowed = field.description or ""
            break
        section = field.annotation
        allowed = "a section with keys of " + ", ".join(f.alias or n for n, f in section.model_fields.items())
    found = "is missing" if first["type"] == "missing" else f"is {shown(raw, path[-1])}"
    return InputError(f"configuration key {'.'.join(path)} {found}; expected {allowed}")


def shown(value: Any, key: str = "") -> str:
    """A value as messages show it, without secrets."""
    text = mask_value(key, value)
    return text if len(text) <= 80 else f"{text[:77]}..."
