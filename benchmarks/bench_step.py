"""What a training step costs in each form, against stock PEFT LoRA of rank r and of rank 2r.

    python benchmarks/bench_step.py [--steps 15]

All forms live side by side and take turns, so that the machine's noise falls on all of them; medians and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import write_results
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

import ailora
from ailora.checkpoints.models import model_path

RANK = 8


def base() -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(model_path("builtin:minilm"), num_labels=2)


def stock(rank: int) -> Any:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(base(), config)


FORMS: dict[str, Callable[[], Any]] = {
    "stock LoRA r": lambda: stock(RANK),
    "stock LoRA 2r": lambda: stock(2 * RANK),
    "anchored": lambda: ailora.adapt(base(), rank=RANK),
    "residual": lambda: ailora.adapt(base(), rank=RANK, form="residual"),
}


def step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward, backward and AdamW step."""
    started = time.perf_counter()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    steps = parser.parse_args().steps
    batch = {"input_ids": torch.randint(1000, 30000, (32, 32)), "labels": torch.randint(0, 2, (32,))}
    models = {name: make().train() for name, make in FORMS.items()}
    optimizers = {n: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for n, m in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(steps + 2):
        for name, model in models.items():
            took = step(model, optimizers[name], batch)
            if round_number >= 2:  # the first rounds warm up
                seconds[name].append(took)
    reference = seconds["stock LoRA r"]
    figures = {
        name: {
            "median_ms": 1e3 * statistics.median(times),
            "ratio_to_stock_r": statistics.median(a / b for a, b in zip(times, reference, strict=True)),
        }
        for name, times in seconds.items()
    }
    for name, figure in figures.items():
        print(f"{name:14} {figure['median_ms']:8.1f} ms   {figure['ratio_to_stock_r']:.3f} x stock LoRA r")
    print("written to", write_results("step", {"model": "MiniLM, 32 x 32 tokens", "rank": RANK, "forms": figures}))


if __name__ == "__main__":
    main()
