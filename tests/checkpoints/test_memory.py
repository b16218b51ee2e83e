"""Peaks of memory do not grow with the checkpoint. Measured in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.memory import peak

MIB = 2**20
WIDTH = 1536


def peak_of(name: str, first: list[str], out: Path, **options: object) -> int:
    measured = "name, first, out, options = request\ngetattr(checkpoints, name)(*first, out, **options)"
    # Both packages import their modules at the first use.
    before = f"from ailora import checkpoints\nfrom transformers import LlamaForCausalLM\ncheckpoints.{name}"
    return peak(before, measured, [name, first, str(out), options])


def checkpoint(folder: Path, layers: int) -> int:
    """A Llama in bf16, and its bytes."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=1000,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="200MB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_init_and_merge_hold_one_weight(tmp_path: Path) -> None:
    small, large = checkpoint(tmp_path / "small", 4), checkpoint(tmp_path / "large", 20)
    assert large > 4 * small
    assert large > 700 * MIB
    bound = 6 * 4 * WIDTH * WIDTH + 128 * MIB
    peaks = {}
    for size in ("small", "large"):
        base, start = str(tmp_path / size), tmp_path / f"{size}-adapter"
        peaks["init", size] = peak_of("init", [base], start, rank=8, cached=False)
        peaks["merge", size] = peak_of("merge", [base, str(start)], tmp_path / f"{size}-merged")
        peaks["half", size] = peak_of("merge", [base, str(start)], tmp_path / f"{size}-fp16", dtype="fp16")
    assert max(peaks.values()) < bound
    for command in ("init", "merge", "half"):
        # A fifth of what the checkpoint grew by would be a copy of a part of it.
        assert peaks[command, "large"] - peaks[command, "small"] < (large - small) / 5
