"""A small Llama of four layers and a small GPT-2 on disk, with what was made of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import ailora
from ailora.analysis import Analysis, analyze
from ailora.analysis.analysis_settings import AnalysisSettings
from ailora.analysis.load_models import load_base, load_finetuned
from ailora.analysis.model_weights import BaseWeights, FinetunedModel
from ailora.plots import analysis_charts
from ailora.plots.analysis_charts import write_analysis

Made = Callable[[str], Path]

HEADS, KEY_HEADS, WIDTH, LAYERS = 4, 2, 32, 4


def llama(layers: int = LAYERS) -> nn.Module:
    torch.manual_seed(5)
    config = tf.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        vocab_size=64,
    )
    return _rough(tf.LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    """Its query, key and value are one weight, which is stored transposed."""
    torch.manual_seed(6)
    return _rough(tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=64)))


def _rough(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model.eval()


def perturbed(model: nn.Module, size: float = 0.02, *, seed: int = 7) -> nn.Module:
    """Every matrix moved a little, as by full fine-tuning."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(model: nn.Module, folder: Path, *, seed: int = 8, **options: object) -> Path:
    """An adapter whose trained numbers were moved at random, all of them."""
    made = ailora.adapt(model, **{"policy": "ailora", "rank": 4, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return ailora.save_adapter(made, folder)


@pytest.fixture(autouse=True, scope="package")
def _alone() -> Iterator[None]:
    """One thread: those of tiny matrices do nothing but wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_settings(**changes: Any) -> AnalysisSettings:
    """The defaults of `analyze`, with changes."""
    names = {field.name for field in fields(AnalysisSettings)}
    defaults = {name: p.default for name, p in inspect.signature(analyze).parameters.items() if name in names}
    return AnalysisSettings(**{**defaults, **changes})


def load_all(
    models: Made, base: str, settings: AnalysisSettings, *paths: Path
) -> tuple[BaseWeights, list[FinetunedModel]]:
    """A base by its name, and models by their folders."""
    opened = load_base(str(models(base)), settings.roles)
    return opened, [load_finetuned(str(path), path.name, opened) for path in paths]


def analyze_into(
    out: Path, base: Path | str, models: Sequence[Path | str] = (), *, force: bool = False, **settings: Any
) -> Analysis:
    """Analyse, and write the folder."""
    analysis = analyze(str(base), models, **settings)
    write_analysis(analysis, out, force=force)
    return analysis


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a picture that say who made them, where a test does not look at pictures."""

    def touch(charts: object, file: Path, **_: object) -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_text("<dc:creator><cc:Agent><dc:title>ailora 0.1.0")

    monkeypatch.setattr(analysis_charts, "save_figure", touch)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders by name: `llama` and `gpt2`; `-full` and `-other`, moved copies; `-adapter`."""
    root = tmp_path_factory.mktemp("models")
    kinds = {"llama": llama, "gpt2": gpt2}
    for name, make in kinds.items():
        make().save_pretrained(root / name)
        perturbed(make()).save_pretrained(root / f"{name}-full")
        perturbed(make(), seed=9).save_pretrained(root / f"{name}-other")
        adapted(make(), root / f"{name}-adapter")
    return lambda name: root / name
