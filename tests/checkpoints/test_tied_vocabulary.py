"""Adapters of a model with tied embeddings, and of a vocabulary that was resized (PEFT #2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Wav2Vec2Config, Wav2Vec2Model

import ailora
from ailora.checkpoints import merge, verify
from ailora.safetensors_io import Checkpoint
from ailora.weights.tied_weights import format_resize_hint

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]
VOCABULARY, RESIZED = 40, 44
HEAD: dict[str, Any] = {"policy": "pissa", "role_names": {"lm_head$": "output"}, "roles": ["output"]}


def tied_llama(vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes))
    if vocabulary != VOCABULARY:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "base"
    tied_llama().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, vocabulary: int, **options: Any) -> Path:
    model = ailora.adapt(tied_llama(vocabulary), rank=2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    ailora.save_adapter(model, folder)
    return folder


def failures(base: Path, adapter: Path) -> str:
    return "\n".join(check.detail for check in verify(adapter, base=str(base)).checks if check.passed is False)


def test_an_adapter_of_a_tied_head_fits_its_base_and_is_not_merged_into_the_embeddings(
    base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", VOCABULARY, **HEAD)
    assert "lm_head.weight" not in Checkpoint.open(base).tensors
    assert failures(base, adapter) == ""
    with pytest.raises(ailora.ModelError, match=r"lm_head.weight and .*embed_tokens.weight share one weight.*untie"):
        merge(str(base), adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_a_resized_tied_head_asks_for_the_vocabulary(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", RESIZED, **HEAD)
    hint = rf"vocabulary was resized .*resize_token_embeddings\({RESIZED}\)"
    with pytest.raises(ailora.ModelError, match=hint):
        ailora.resume(tied_llama(), adapter)
    with pytest.raises(ailora.ModelError, match=hint):
        merge(str(base), adapter, tmp_path / "merged")
    assert f"resize_token_embeddings({RESIZED})" in failures(base, adapter)
    ailora.resume(tied_llama(RESIZED), adapter)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, RESIZED])
@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_a_tied_weight_that_is_trained_under_one_name_is_refused_with_both_ways_out(
    base: Path, tmp_path: Path, saved: str, vocabulary: int
) -> None:
    adapter = save_adapter(tmp_path / "adapter", vocabulary, modules_to_save=[saved])
    ways_out = r"share one weight, .* only one of them: train both with modules_to_save=\['\w+', '\w+'\], or untie"
    with pytest.raises(ailora.ModelError, match=ways_out):
        merge(str(base), adapter, tmp_path / "merged")
    assert "untie the base model" in failures(base, adapter)


def test_a_head_that_is_adapted_and_saved_is_refused_with_the_choice() -> None:
    with pytest.raises(ailora.InputError, match=r"'lm_head' is or contains lm_head, .*: remove 'lm_head' from"):
        ailora.adapt(tied_llama(RESIZED), rank=2, modules_to_save=["lm_head"], **HEAD)


def test_a_model_without_a_vocabulary_gets_no_hint_to_resize_one() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    with torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config(**sizes))
    assert not format_resize_hint(model, "encoder.layers.0.attention.q_proj", (32, 32), (48, 32))
