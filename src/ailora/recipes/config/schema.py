"""Configuration schema of each recipe."""

from __future__ import annotations

from typing import Any

import pydantic

from ailora.errors import unknown_name
from ailora.recipes.config.classification_config import ClassificationConfig, DataConfig
from ailora.recipes.config.language_config import CausalLMConfig, LanguageConfig, PromptData, Seq2SeqConfig
from ailora.recipes.config.sections import AdapterConfig, DataSource, RunConfig
from ailora.recipes.config.validation import format_validation_error

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
    "validate_config",
]

#: Recipe -> schema of its configuration.
SCHEMAS: dict[str, type[RunConfig]] = {
    "classification": ClassificationConfig,
    "causal_lm": CausalLMConfig,
    "seq2seq": Seq2SeqConfig,
}


def validate_config(raw: dict[str, Any]) -> RunConfig:
    """Validate keys and types of a configuration against the schema of its recipe.

    Args:
        raw: Content of a configuration.

    Returns:
        The configuration, without the defaults of `training:` and with paths as given.

    Raises:
        InputError: A recipe or key is unknown, a mandatory key is missing, or a value has the wrong type. The message
            lists the allowed values.
    """
    recipe = raw.get("recipe")
    # The recipe may be unhashable, so compare it with a list.
    if recipe is not None and recipe not in list(SCHEMAS):
        raise unknown_name("recipe", recipe, SCHEMAS)
    # If the recipe is missing, any schema reports that.
    schema = SCHEMAS["classification" if recipe is None else recipe]
    try:
        return schema.model_validate(raw)
    except pydantic.ValidationError as error:
        raise format_validation_error(error, raw, schema) from None
