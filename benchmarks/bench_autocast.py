"""Compare the CPU time of a training step with and without bf16 autocast, alternately, on a single thread.

    python benchmarks/bench_autocast.py [MODEL] [--pairs 7]

MODEL is a hub id or a folder with an encoder; the default is all-mpnet-base-v2. A step is the forward and backward pass
of a classifier with AILoRA of rank 8 on query and value, for 32 rows of 26 tokens, the mean length in SST-2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from machine import write_results
from transformers import AutoModelForSequenceClassification

import ailora
from ailora.model_loading import resolve_model

ROWS, TOKENS = 32, 26


def step(model: Any, inputs: dict[str, torch.Tensor], *, autocast: bool) -> float:
    """Return the CPU seconds of a forward and backward pass. Unlike wall time, other programs hardly change them."""
    started = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(**inputs).loss
    loss.backward()
    model.zero_grad()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sentence-transformers/all-mpnet-base-v2")
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(resolve_model(arguments.model), num_labels=2)
    model = ailora.adapt(base, "ailora", rank=8).train()
    ids = torch.randint(5, 2000, (ROWS, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (ROWS,))}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(arguments.pairs + 1):
        for autocast, taken in seconds.items():
            cpu = step(model, inputs, autocast=autocast)
            if pair:  # the first pair warms up
                taken.append(cpu)
    ratios = [plain / cast for plain, cast in zip(seconds[False], seconds[True], strict=True)]
    figures = {
        "rows": ROWS,
        "tokens": TOKENS,
        "float32_s": seconds[False],
        "autocast_s": seconds[True],
        "median_ratio": statistics.median(ratios),
    }
    print(json.dumps(figures))
    print(write_results("autocast-cpu", {"model": base.config.model_type, **figures}))


if __name__ == "__main__":
    main()
