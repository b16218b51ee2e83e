"""Runs of a recipe in two processes: killed, gone on with, and equal to one process's in all that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ailora
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml
from tests.engines.launch import launch
from tests.recipes.language import save_llama, write_facts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
SHARDED = {**FSDP, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose batches are of eight rows, however many processes share them."""
    folder = tmp_path_factory.mktemp("recipes")
    general = folder / "general.jsonl"
    general.write_text("".join(json.dumps({"text": f"{word} and {word}"}) + "\n" for word in ("cup", "car", "lamp")))
    return {
        "recipe": "causal_lm",
        "model": save_llama(folder / "llama"),
        "adapter": {"policy": "ailora", "rank": 4, "learning_rates": {"query": 0.5, "B": 2.0}},
        "data": {**write_facts(folder, train=96, validation=23), "prompt": "{mr} =>", "completion": " {ref}"},
        "evaluation": {
            "generate": {"max_new_tokens": 8},
            "group_by": "mr",
            "metrics": ["bleu"],
            "max_samples": 7,
            "general_text": str(general),
        },
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "eval_steps": 6,
            "logging_steps": 3,
            "disable_tqdm": True,
            "seed": 0,
        },
    }


@pytest.fixture(scope="module")
def alone(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    registry.run(load_config(config, [f"output={out}", "training.per_device_train_batch_size=8"]))
    return out


def train(config: dict[str, Any], folder: Path, engine: dict[str, Any], **options: Any) -> tuple[int, str]:
    """The exit code of two processes, and what they said."""
    training = config["training"] | {"per_device_train_batch_size": 4} | engine
    file = folder / "run.yaml"
    file.write_text(format_yaml({**config, "training": training, "output": str(folder / "run")}))
    log = folder / "log.txt"
    return launch("tests.engines.recipe", json.dumps({"config": str(file), **options}), log=log), log.read_text()


@pytest.mark.parametrize("engine", [{}, FSDP, SHARDED], ids=["ddp", "fsdp2", "fsdp2 sharded"])
def test_two_processes_write_what_one_does(
    config: dict[str, Any], alone: Path, tmp_path: Path, engine: dict[str, Any]
) -> None:
    code, said = train(config, tmp_path, engine, killed_at=14)
    assert code != 0
    assert "SIGKILL" in said
    assert not (tmp_path / "run" / "result.json").exists()
    code, said = train(config, tmp_path, engine)
    assert code == 0, said[-4000:]
    made, expected = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", alone))
    for key in ("loss", "perplexity"):
        assert made["metrics"]["validation"][key] == pytest.approx(expected["metrics"]["validation"][key], rel=1e-4)
    assert made["forgetting"] == pytest.approx(expected["forgetting"], rel=1e-3, abs=1e-4)
    assert made["steps"] == expected["steps"]
    assert made["trainable_parameters"] == expected["trainable_parameters"]
    samples = [(folder / "samples.jsonl").read_text() for folder in (tmp_path / "run", alone)]
    assert samples[0] == samples[1]
    files = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", alone)]
    assert files[0].keys() == files[1].keys()
    assert max(float((files[0][name] - file).norm() / file.norm()) for name, file in files[1].items()) <= 1e-4
    assert registry.load_run(tmp_path / "run").evaluate()["loss"] == pytest.approx(
        made["metrics"]["validation"]["loss"], rel=1e-4
    )


def test_fsdp_without_an_accelerator_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    """accelerate would fall back to DDP, in silence."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    with pytest.raises(ailora.InputError, match=r"training\.fsdp needs an accelerator"):
        registry.run(load_config({**config, "output": str(tmp_path / "run"), "training": FSDP}))
    assert not (tmp_path / "run").exists()
