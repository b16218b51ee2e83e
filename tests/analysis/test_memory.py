"""The peak of memory does not grow with the number of layers. Measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf

MIB = 2**20
WIDTH = 512

_SCRIPT = """
import json, sys
from pathlib import Path
from ailora.analysis import analysis, gram

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

analysis.analysis_charts = lambda made: []
gram.BLOCK = 8 * 2**20
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
base, after, out = json.loads(sys.argv[1])
analysis.analyze(base, after, out, seeds=(0,))
print(status("VmHWM") - before)
"""


def peak(base: Path, after: list[Path], out: Path) -> int:
    request = json.dumps([str(base), [str(path) for path in after], str(out)])
    command, alone = [sys.executable, "-c", _SCRIPT, request], {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert made.returncode == 0, made.stderr
    return int(made.stdout.splitlines()[-1])


def checkpoint(folder: Path, layers: int, seed: int) -> Path:
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=100,
        dtype="bfloat16",
    )
    tf.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_one_matrix_and_one_block(tmp_path: Path) -> None:
    few, many = (
        peak(
            checkpoint(tmp_path / f"base-{layers}", layers, 0),
            [checkpoint(tmp_path / f"after-{layers}", layers, 1)],
            tmp_path / f"out-{layers}",
        )
        for layers in (4, 28)
    )
    # Forty-eight matrices more of each role, which would be 96 MiB in float64.
    assert many < few + 32 * MIB
