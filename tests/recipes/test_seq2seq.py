"""Sequence-to-sequence models: the same runs, with an encoder that reads the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoTokenizer

import ailora
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.dry_run import dry_run
from ailora.recipes.inference.text_generator import TextGenerator
from tests.recipes.language import save_t5


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_t5(tmp_path_factory.mktemp("tiny-t5"))


@pytest.fixture
def seq2seq_config(language_config: dict[str, Any], tiny_t5: str) -> dict[str, Any]:
    roles = ["query", "key", "value", "output"]
    language_config |= {"recipe": "seq2seq", "model": tiny_t5}
    language_config["adapter"] |= {"roles": roles, "learning_rates": {"query": 0.5}}
    return language_config


def run(config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return registry.run(load_config(config, overrides))


def test_a_run_learns_writes_and_is_used(seq2seq_config: dict[str, Any], tmp_path: Path) -> None:
    result = run(seq2seq_config)
    losses = [record["loss"] for record in result["history"]]
    assert losses[-1] < losses[0]
    finished = registry.load_run(tmp_path / "run")
    assert finished.evaluate() == pytest.approx(result["metrics"]["validation"], rel=1e-4)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    prompts = [f"{sample['prompt'].removesuffix('</s>')}" for sample in samples]
    assert TextGenerator.load(tmp_path / "run").generate(prompts, {"max_new_tokens": 12}) == [
        s["output"] for s in samples
    ]
    assert "AutoPeftModelForSeq2SeqLM" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_the_loss_is_that_of_the_stock_model(seq2seq_config: dict[str, Any], tmp_path: Path) -> None:
    result = run(seq2seq_config)
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(seq2seq_config["model"])
    total, count = 0.0, 0
    for line in Path(seq2seq_config["data"]["validation"]).read_text().splitlines()[1:]:
        mr, ref = line.strip('"').split('",')
        ids, labels = (torch.tensor([tokenizer(text)["input_ids"]]) for text in (f"{mr} =>", f" {ref}"))
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * labels.shape[1]
        count += labels.shape[1]
    assert total / count == pytest.approx(result["metrics"]["validation"]["loss"], rel=1e-4)


def test_label_smoothing_changes_the_training_only(seq2seq_config: dict[str, Any]) -> None:
    """The decoder still reads the labels, and losses of evaluations are those of the labels."""
    seq2seq_config |= {"evaluation": {}}
    result = run(seq2seq_config, "training.label_smoothing_factor=0.2", "training.max_steps=6", "training.eval_steps=3")
    losses = [record["loss"] for record in result["history"]]
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(result["metrics"]["validation"]["loss"], abs=0.02)


def test_a_causal_model_is_refused(seq2seq_config: dict[str, Any], tiny_llama: str, tmp_path: Path) -> None:
    with pytest.raises(
        ailora.InputError,
        match=r"type llama, which has no class for .*generation; recipes for this type: classification, causal_lm$",
    ):
        run(seq2seq_config, f"model={tiny_llama}")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_what_is_read_and_written(seq2seq_config: dict[str, Any], tmp_path: Path) -> None:
    made = dry_run(load_config(seq2seq_config))
    assert made.facts["steps"] == 24
    assert all((" =>" in example and "[[ The" in example) or "[[ There" in example for example in made.examples)
    assert not (tmp_path / "run").exists()
