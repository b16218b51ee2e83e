"""Learning rates from curvature: what is proposed is what the curvatures say, and the model is not touched."""

from __future__ import annotations

import math
from typing import Any

import pytest

import ailora
from ailora.recipes.config.loader import load_config
from ailora.recipes.suggest_lr import suggest


def test_plain_lora_is_given_its_own_rate(language_config: dict[str, Any]) -> None:
    made = suggest(load_config(language_config, ["adapter.policy=lora"]), 3e-3, batches=2, rows=8)
    assert made.learning_rate == pytest.approx(3e-3)
    assert made.multipliers == {"query": 1, "value": 1}


def test_a_rate_for_each_role(language_config: dict[str, Any]) -> None:
    config = load_config(language_config)
    made = suggest(config, 3e-3, batches=2, rows=8)
    assert made.roles.keys() == {"query", "value"}
    for each in made.roles.values():
        expected = math.sqrt(each.reference.value / each.curvature.value)
        assert each.multiple.value == pytest.approx(expected)
        assert each.rate == pytest.approx(3e-3 * expected)
    assert max(made.multipliers.values()) == 1
    again = suggest(config, 3e-3, batches=2, rows=8)
    assert again.roles == made.roles


def test_classification_is_measured_too(config: dict[str, Any]) -> None:
    made = suggest(load_config(config), 3e-3, batches=2, rows=8)
    assert made.roles.keys() == {"query", "value"}


@pytest.mark.parametrize(
    ("overrides", "numbers", "message"),
    [
        (["adapter={policy: full}"], (1e-3, 2, 8), "got adapter.policy full"),
        ([], (0.0, 2, 8), "a finite rate above 0"),
        ([], (1e-3, 1, 8), "at least 2 batches"),
        ([], (1e-3, 50, 8), "expected at least 400 training rows .*got 96"),
    ],
)
def test_bad_numbers_are_refused(
    language_config: dict[str, Any], overrides: list[str], numbers: tuple[float, int, int], message: str
) -> None:
    rate, batches, rows = numbers
    with pytest.raises(ailora.InputError, match=message):
        suggest(load_config(language_config, overrides), rate, batches=batches, rows=rows)
