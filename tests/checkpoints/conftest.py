"""Adapters that were trained, in every form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import ailora
from ailora.lora.inject import get_metadata
from tests.families import FAMILIES, train

LLAMA = FAMILIES["llama"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama on disk, in shards."""
    folder = tmp_path_factory.mktemp("base")
    LLAMA.model().save_pretrained(folder, max_shard_size="20KB")
    return folder


def loaded(base: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()


def trained(base: Path, folder: Path, **options: object) -> Path:
    """The folder of an adapter that was trained for a few steps."""
    model = ailora.adapt(loaded(base), **{"rank": 4, **options})
    train(model, LLAMA, steps=5, rate=1e-2)
    return ailora.save_adapter(model, folder)


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the small Llama, trained in the anchored form."""
    return trained(base, tmp_path_factory.mktemp("adapter"))


def on_residual_weights(base: Path, folder: Path, **options: object) -> nn.Module:
    """A model trained in the residual form, and its adapter as PEFT saves it while it trains."""
    model = ailora.adapt(loaded(base), **{"rank": 4, "form": "residual", **options})
    train(model, LLAMA, steps=3, rate=1e-2)
    model.save_pretrained(folder)
    get_metadata(model).write(folder)
    return model.eval()
