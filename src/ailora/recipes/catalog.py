"""Every recipe by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ailora.recipes import causal_lm, classification
from ailora.recipes.schema import RunConfig

RECIPES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "classification": classification.run,
    "causal_lm": causal_lm.run,
}


def run(config: RunConfig) -> dict[str, Any]:
    """Run the recipe that a configuration names; what `result.json` then holds."""
    return RECIPES[config.recipe](config)
