"""Small pretrained-like models of several families, made from their configs, and the real MiniLM."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
)
from torch import Tensor, nn

RANK = 4
#: Device of the models and their inputs: `benchmarks/gpu/contracts.py` runs the contract tests on a GPU.
DEVICE = os.environ.get("AILORA_TEST_DEVICE", "cpu")
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Family:
    """A model of one family: how to make it, feed it, and find its query and value weights."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    auto: Any
    options: dict[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """A fresh copy, in eval mode, dropout 0."""
        return copy.deepcopy(_made(self.name)).eval()

    def output(self, model: nn.Module) -> Tensor:
        """The logits for the family's inputs, without gradients: torch picks kernels by what requires them."""
        with torch.no_grad():
            return model(**self.inputs()).logits

    def loss(self, model: nn.Module) -> Tensor:
        """Mean squared distance of the logits from fixed random numbers."""
        logits = model(**self.inputs()).logits
        target = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
        return ((logits.float() - target.to(DEVICE)) ** 2).mean()

    def save(self, folder: Path) -> str:
        """The base model as a folder that `from_pretrained` reads."""
        self.model().save_pretrained(folder)
        return str(folder)


def _tokens(vocabulary: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(5, vocabulary, (3, 7), generator=generator).to(DEVICE)}


def _t5_inputs() -> dict[str, Tensor]:
    return {**_tokens(), "decoder_input_ids": _tokens()["input_ids"][:, :4]}


def _image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)}


def _from_config(auto: Any, config: Any) -> nn.Module:
    torch.manual_seed(3)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


def _bert() -> nn.Module:
    config = tf.BertConfig(**_SIZES, **_NO_DROPOUT, vocab_size=64, num_labels=3)
    return _from_config(tf.AutoModelForSequenceClassification, config)


def _roberta() -> nn.Module:
    config = tf.RobertaConfig(**_SIZES, **_NO_DROPOUT, vocab_size=64, num_labels=3, max_position_embeddings=64)
    return _from_config(tf.AutoModelForSequenceClassification, config)


def _llama() -> nn.Module:
    config = tf.LlamaConfig(**_SIZES, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True)
    return _from_config(tf.AutoModelForCausalLM, config)


def _t5() -> nn.Module:
    config = tf.T5Config(d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, vocab_size=64, dropout_rate=0.0)
    return _from_config(tf.AutoModelForSeq2SeqLM, config)


def _vit() -> nn.Module:
    config = tf.ViTConfig(**_SIZES, **_NO_DROPOUT, image_size=16, patch_size=8, num_labels=3)
    return _from_config(tf.AutoModelForImageClassification, config)


def _minilm() -> nn.Module:
    from ailora.model_path import resolve_model

    torch.manual_seed(3)
    return tf.AutoModelForSequenceClassification.from_pretrained(
        resolve_model("builtin:minilm"), num_labels=3, **_NO_DROPOUT
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("bert", _bert, _tokens, AutoPeftModelForSequenceClassification),
        Family("roberta", _roberta, _tokens, AutoPeftModelForSequenceClassification),
        Family("llama", _llama, _tokens, AutoPeftModelForCausalLM),
        Family("t5", _t5, _t5_inputs, AutoPeftModelForSeq2SeqLM),
        Family("vit", _vit, _image, AutoPeftModel, {"modules_to_save": ["classifier"]}),
        Family("minilm", _minilm, lambda: _tokens(2000), AutoPeftModelForSequenceClassification),
    )
}


@cache
def _made(name: str) -> nn.Module:
    return FAMILIES[name].make().to(DEVICE)


def train(model: nn.Module, family: Family, *, steps: int = 5, rate: float = 1e-2) -> torch.optim.Optimizer:
    """A few AdamW steps toward fixed random outputs."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        family.loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return optimizer
