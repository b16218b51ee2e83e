"""Configurations: what is completed, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import ailora
from ailora.recipes.config import load_config, task_names, to_yaml


def minimal() -> dict[str, Any]:
    return {
        "recipe": "classification",
        "model": "builtin:minilm",
        "data": {"train": "train.tsv", "validation": ["a.tsv", "b.tsv"], "text": ["sentence"]},
        "output": "out/x",
    }


def test_a_resolved_config_runs_again_as_it_is() -> None:
    config = load_config(minimal())
    again = load_config(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert Path(config.output).is_absolute()
    assert all(Path(path).is_absolute() for path in config.data.validation)


def test_saving_follows_evaluating() -> None:
    def strategies(*overrides: str) -> dict[str, Any]:
        training = load_config(minimal(), overrides).training
        return {key: training.get(key) for key in ("eval_strategy", "eval_steps", "save_strategy", "save_steps")}

    assert list(strategies().values()) == ["steps", 0.1, "steps", 0.1]
    assert list(strategies("training.eval_strategy=epoch").values()) == ["epoch", None, "epoch", None]
    assert list(strategies("training.eval_steps=7").values()) == ["steps", 7, "steps", 7]


def test_overrides_are_yaml_values_under_dotted_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(minimal()))
    overrides = ["adapter.policy=lora", "adapter.rank={query: 2, value: 4}", "training.learning_rate=1e-3"]
    config = load_config(file, [*overrides, "data.max_train_samples=500", "training.seed=1"])
    assert config.adapter.policy == "lora"
    assert config.adapter.rank == {"query": 2, "value": 4}
    assert config.training["learning_rate"] == 1e-3
    assert (config.data.max_train_samples, config.training["seed"]) == (500, 1)


@pytest.mark.parametrize("task", task_names())
def test_tasks_fill_in_data_and_metric(task: str) -> None:
    config = load_config({"recipe": "classification", "task": task, "model": "m", "output": "o"})
    assert config.data.dataset == "nyu-mll/glue"
    assert config.data.subset == task
    assert config.regression == (task == "stsb")


def test_what_is_given_wins_over_the_task() -> None:
    raw = {"recipe": "classification", "task": "cola", "model": "m", "output": "o", "metric": "accuracy"}
    config = load_config({**raw, "data": {"max_train_samples": 5}})
    assert (config.metric, config.data.max_train_samples, config.data.text) == ("accuracy", 5, ["sentence"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=x", "unknown key 'modle' .did you mean 'model'"),
        ("adapter.rnak=4", "unknown key in adapter 'rnak' .did you mean 'rank'"),
        ("data.lable=x", "unknown key in data 'lable' .did you mean 'label'"),
        ("training.learning_rat=1", "unknown key in training 'learning_rat' .did you mean 'learning_rate'"),
        ("training.output_dir=x", "training.output_dir cannot be set: it follows from output"),
        ("training.learning_rate=fast", "training.learning_rate: .*, got 'fast'"),
        ("training.num_train_epochs=[1]", "training.num_train_epochs: .*, got"),
        ("metric=accurracy", "unknown metric 'accurracy' .did you mean 'accuracy'"),
        ("metric=[accuracy, pearson]", "cannot be mixed"),
        ("adapter.policy=ailroa", "unknown policy 'ailroa' .did you mean 'ailora'.*; allowed: .*full"),
        ("adapter.policy={query: smallest}", "unknown init 'smallest'"),
        ("adapter.roles=[querry]", "unknown role 'querry'"),
        ("adapter.role_names={wq: querry}", "unknown role 'querry'"),
        ("adapter.form=anchor", "unknown form 'anchor' .did you mean 'anchored'"),
        ("adapter.rank=many", "configuration key adapter.rank"),
        ("data.text=[]", "configuration key data.text"),
        ("data.text=[a, b, c]", "configuration key data.text"),
        ("data.max_train_samples=0", "data.max_train_samples: .*, got 0"),
        ("recipe=clasification", "unknown recipe 'clasification'"),
        ("task=colla", "unknown task 'colla' .did you mean 'cola'"),
        ("model.x=1", "'model' has no keys below it"),
        ("adapter.rank", "not of the form dotted.key=value"),
        ("data.text=[a", "not a YAML value"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        load_config(minimal(), [override])


def test_missing_keys_and_files_are_named(tmp_path: Path) -> None:
    raw = minimal()
    del raw["model"]
    with pytest.raises(ailora.InputError, match="configuration key model: field required"):
        load_config(raw)
    with pytest.raises(ailora.InputError, match=r"cannot read the configuration .*nowhere"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ailora.InputError, match=r"bad\.yaml is not YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ailora.InputError, match="expected keys such as recipe"):
        load_config(tmp_path / "list.yaml")
