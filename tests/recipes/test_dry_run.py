"""What a run would do is said before it does it, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ailora
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.dry_run import dry_run


@pytest.mark.parametrize(
    "adapter", ["{policy: ailora, rank: 4}", pytest.param("{policy: full}", marks=pytest.mark.slow)]
)
def test_counts_are_those_of_the_run(language_config: dict[str, Any], tmp_path: Path, adapter: str) -> None:
    config = load_config(language_config, [f"adapter={adapter}"])
    facts = dry_run(config).facts
    assert not (tmp_path / "run").exists()
    result = registry.run(config)
    for key in ("steps", "trainable_parameters", "total_parameters"):
        assert facts[key] == result[key], key
    assert 0 < facts["train_seconds"] < 60


def test_what_the_loss_counts_is_marked(language_config: dict[str, Any]) -> None:
    made = dry_run(load_config(language_config))
    assert len(made.examples) == 2
    for example in made.examples:
        prompt, _, rest = example.partition("[[")
        assert prompt.endswith(" =>")
        assert rest.endswith("</s>]]")
    assert made.plan is not None
    assert "2 query" in str(made.plan)


def test_classified_rows_show_their_label(config: dict[str, Any]) -> None:
    made = dry_run(load_config(config))
    assert all("->" in example for example in made.examples)
    # The head is trained as well.
    assert made.facts["train_rows"] == 96


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rank=999", "rank 999 is not possible"),
        ("data.prompt='{question}'", "names the column 'question'"),
        ("adapter.learning_rates={up: 2}", "role up is not adapted"),
        ("training.max_length=8", "nothing of the completion is left"),
    ],
)
def test_what_the_run_would_refuse_is_refused(language_config: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        dry_run(load_config(language_config, [override]))
