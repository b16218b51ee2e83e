"""A tiny BERT with MiniLM's tokenizer, and small data that it can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from ailora.model_path import resolve_model
from ailora.recipes.demo_task import write_verdicts
from tests.recipes.language import save_llama, write_facts

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of two narrow layers, with dropout, saved with a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = tf.AutoTokenizer.from_pretrained(resolve_model("builtin:minilm"))
    torch.manual_seed(1)
    tf.BertModel(tf.BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's task, small."""
    return write_verdicts(tmp_path_factory.mktemp("verdicts"), train=96, held_out=24)


@pytest.fixture
def config(tiny_bert: str, verdicts: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A configuration that runs in a second or two."""
    return {
        "recipe": "classification",
        "model": tiny_bert,
        "adapter": {"policy": "ailora", "rank": 4},
        "data": {**{split: str(path) for split, path in verdicts.items()}, "text": ["sentence"]},
        "metric": ["accuracy", "f1"],
        "training": {
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "eval_steps": 5,
            "logging_steps": 3,
            "disable_tqdm": True,
        },
        "output": str(tmp_path / "run"),
    }


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of two narrow layers with a tokenizer of its own."""
    return save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Facts to sentences, small."""
    return write_facts(tmp_path_factory.mktemp("facts"), train=96, validation=24)


@pytest.fixture
def language_config(tiny_llama: str, facts: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """A configuration of the causal_lm recipe that runs in a second or two."""
    return {
        "recipe": "causal_lm",
        "model": tiny_llama,
        "adapter": {"policy": "ailora", "rank": 4},
        "data": {**facts, "prompt": "{mr} =>", "completion": " {ref}"},
        "evaluation": {
            "generate": {"max_new_tokens": 12},
            "group_by": "mr",
            "metrics": ["bleu", "rouge_l"],
            "max_samples": 8,
        },
        "training": {
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "eval_steps": 6,
            "logging_steps": 3,
            "disable_tqdm": True,
        },
        "output": str(tmp_path / "run"),
    }
