"""The section `tune:` is validated strictly, wherever it is read, and is no part of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ailora import InputError
from ailora.cli import app
from ailora.recipes.config.loader import load_config, to_yaml
from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"budget": "0.5x"}, "budget must be at least 1x, the cost of one run, got 0.5x"),
        ({"budget": "0m"}, "budget must be more than 0, got 0m"),
        ({"budget": "5 runs"}, "expected a number of runs such as '5x', or a time such as '30m', got '5 runs'"),
        ({"budget": 5}, r"tune.budget is 5; expected a number of runs such as '5x'"),
        ({"budgt": "5x"}, "unknown key in tune 'budgt'"),
        ({"policy": ["lora", "pisa"]}, "tune.policy: unknown policy 'pisa'"),
        ({"policy": ["full"]}, "expected policies of adapters, got full"),
        ({"policy": ["a.b:c"]}, "expected policies of adapters, got a.b:c"),
        ({"policy": []}, "expected a list of policies"),
        ({"policy": ["lora", "lora"]}, "tune.policy names lora twice"),
        ({"roles": [["query", "vale"]]}, "unknown role 'vale'"),
        ({"roles": ["every"]}, "expected a list whose items are lists of roles, or 'all'"),
        ({"learning_rate": {"from": 1e-2, "to": 1e-3}}, "from 0.01 is more than to 0.001"),
        ({"learning_rate": {"from": 0.0, "to": 1e-3}}, "tune.learning_rate"),
        ({"learning_rate": {"from": 1e-3}}, "expected both from and to"),
        ({"learning_rate": {}}, "expected either from and to, or values"),
        ({"learning_rate": {"from": 1e-3, "to": 1e-2, "values": [1e-3]}}, "expected either from and to, or values"),
        ({"learning_rate": {"values": [1e-3, 1e-3]}}, "names a rate twice"),
        ({"learning_rate": "auto!"}, "expected 'auto', or a mapping with either from and to, or values"),
        ({"rank": [0]}, "expected a list of whole numbers of at least 1"),
        ({"goal": "acuracy"}, "unknown tune.goal 'acuracy'"),
    ],
)
def test_what_is_wrong_is_refused_with_the_allowed(config: dict[str, Any], tune: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(config | {"tune": tune})


def test_a_goal_that_is_measured_after_training_only_is_refused(language_config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"unknown tune\.goal 'bleu'"):
        load_config(language_config | {"tune": {"goal": "bleu"}})


@pytest.mark.parametrize(
    ("budget", "runs", "seconds"), [("5x", 5, None), ("2.5 x", 2.5, None), ("30m", None, 1800), ("2h", None, 7200)]
)
def test_a_budget_is_in_runs_or_in_time(
    config: dict[str, Any], budget: str, runs: float | None, seconds: float | None
) -> None:
    tune = load_config(config | {"tune": {"budget": budget}}).tune
    assert (tune.budget_runs, tune.budget_seconds) == (runs, seconds)


def test_the_section_is_no_part_of_a_run(config: dict[str, Any]) -> None:
    """A folder and a study's trials are the same with and without it."""
    plain, tuned = load_config(config), load_config(config | {"tune": {"budget": "3x"}})
    assert to_yaml(tuned) == to_yaml(plain)
    study = {"methods": ["lora"], "learning_rate": {"values": [1e-3]}, "output": config["output"]}
    base = {key: value for key, value in config.items() if key != "output"}
    keys = []
    for content in (base, base | {"tune": {"budget": "3x"}}):
        design = StudyDesign(load_study_config(study | {"base": content}))
        keys.append([design.keys.key(spec) for spec in design.required_trials([])])
    assert keys[0] == keys[1]


def test_train_says_that_tune_would_use_it(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(format_yaml(config | {"tune": {"budget": "3x"}}))
    result = CliRunner().invoke(app, ["train", str(file), "--dry-run"])
    assert result.exit_code == 0
    assert "the section tune is ignored: only `ailora tune` uses it" in result.stderr
