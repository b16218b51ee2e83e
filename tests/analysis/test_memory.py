"""The peak of memory does not grow with the number of layers. Measured in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers as tf

from tests.memory import peak

MIB = 2**20
WIDTH = 512

_BEFORE = """
from ailora.analysis import gram_matrix, weight_analysis
gram_matrix.BLOCK_BYTES = 8 * 2**20
"""


def peak_of(base: str, after: str) -> int:
    request = [base, [after]]
    return peak(_BEFORE, "weight_analysis.analyze(*request, seeds=(0,))", request, environment={"OMP_NUM_THREADS": "1"})


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
        [str(checkpoint(tmp_path / f"{kind}-{layers}", layers, seed)) for kind, seed in (("base", 0), ("after", 1))]
        for layers in (4, 28)
    )
    # Forty-eight matrices more of each role, which would be 96 MiB in float64.
    limit = peak_of(*few) + 32 * MIB
    # Kept matrices would add to the peak of every run. With equal code and inputs, some runs (2 of 8 measured) peak 40
    # MiB higher for an unknown reason.
    assert any(peak_of(*many) < limit for _ in range(3))
