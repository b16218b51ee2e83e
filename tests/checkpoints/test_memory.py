"""Peaks of memory do not grow with the checkpoint. Measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MIB = 2**20
WIDTH = 1536

_SCRIPT = """
import json, sys
from pathlib import Path
from ailora import checkpoints

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
name, first, out, options = json.loads(sys.argv[1])
getattr(checkpoints, name)(*first, out, **options)
print(status("VmHWM") - before)
"""


def peak(name: str, first: list[str], out: Path, **options: object) -> int:
    request = json.dumps([name, first, str(out), options])
    made = subprocess.run([sys.executable, "-c", _SCRIPT, request], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return int(made.stdout.splitlines()[-1])


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
        peaks["init", size] = peak("init", [base], start, rank=8, cached=False)
        peaks["merge", size] = peak("merge", [base, str(start)], tmp_path / f"{size}-merged")
        peaks["half", size] = peak("merge", [base, str(start)], tmp_path / f"{size}-fp16", dtype="fp16")
    assert max(peaks.values()) < bound
    for command in ("init", "merge", "half"):
        # A fifth of what the checkpoint grew by would be a copy of a part of it.
        assert peaks[command, "large"] - peaks[command, "small"] < (large - small) / 5
