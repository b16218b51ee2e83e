"""What a training step costs in each form, against stock PEFT LoRA of rank r and of rank 2r.

    python benchmarks/bench_step.py [--steps 15] [--models minilm pico-llama] [--shared ../shared]
    python benchmarks/bench_step.py --models llama-1b llama-7b --device cuda --compile

All forms of a model live side by side and take turns, so that the machine's noise falls on all of them; medians and
their ratios. Memory is the peak of a process of its own beyond what it had loaded, or what CUDA allocated at most.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

import ailora
from ailora.model_loading import resolve_model

RANK = 8
ROOT = Path(__file__).resolve().parents[1]
#: (hidden, intermediate, layers, heads, key-value heads) of models from a configuration, in bfloat16.
SHAPES = {"llama-1b": (2048, 8192, 16, 32, 8), "llama-7b": (4096, 11008, 32, 32, 32)}
FORMS = ("stock LoRA r", "stock LoRA 2r", "anchored", "residual")


def base(name: str, arguments: argparse.Namespace) -> Any:
    """A base model, the same each time."""
    torch.manual_seed(0)
    if name == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(resolve_model("builtin:minilm"), num_labels=2)
    if name == "pico-llama":
        return AutoModelForCausalLM.from_pretrained(arguments.shared / "lm" / "pico-llama")
    hidden, intermediate, layers, heads, groups = SHAPES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
    )
    with torch.device(arguments.device):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def batch(name: str, device: str) -> dict[str, torch.Tensor]:
    """Random tokens of a usual size."""
    generator = torch.Generator().manual_seed(0)
    if name == "minilm":
        ids = torch.randint(1000, 30000, (32, 32), generator=generator)
        return {"input_ids": ids, "labels": torch.randint(0, 2, (32,), generator=generator)}
    rows, length = (16, 72) if name == "pico-llama" else (4, 512)
    ids = torch.randint(5, 4000, (rows, length), generator=generator).to(device)
    return {"input_ids": ids, "labels": ids}


def adapted(name: str, form: str, arguments: argparse.Namespace) -> Any:
    """A base model with the adapter of a form, ready to train."""
    model = base(name, arguments)
    if form.startswith("stock"):
        rank = 2 * RANK if form.endswith("2r") else RANK
        targets = ["query", "value"] if name == "minilm" else ["q_proj", "v_proj"]
        made = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    else:
        made = ailora.adapt(model, rank=RANK, form=form)
    made = made.to(arguments.device).train()
    return torch.compile(made) if arguments.compile else made


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)


def step(model: Any, optimizer: torch.optim.Optimizer, inputs: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward, backward and AdamW step."""
    started = time.perf_counter()
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def times(name: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of each form, and the median of its ratios to stock LoRA of the same rank, round by round."""
    inputs = batch(name, arguments.device)
    models = {form: adapted(name, form, arguments) for form in FORMS}
    optimizers = {form: optimizer_of(model) for form, model in models.items()}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    order = random.Random(0)
    for round_number in range(arguments.steps + 2):
        for form in order.sample(FORMS, len(FORMS)):
            took = step(models[form], optimizers[form], inputs)
            if round_number >= 2:  # the first rounds warm up
                seconds[form].append(took)
    reference = seconds["stock LoRA r"]
    tokens = inputs["input_ids"].numel()
    return {
        form: {
            "median_ms": 1e3 * statistics.median(taken),
            "tokens_per_second": tokens / statistics.median(taken),
            "ratio_to_stock_r": statistics.median(a / b for a, b in zip(taken, reference, strict=True)),
        }
        for form, taken in seconds.items()
    }


def peak_memory(name: str, form: str, arguments: argparse.Namespace) -> int:
    """Peak bytes of three steps beyond the adapted model, in this process."""
    model, inputs = adapted(name, form, arguments), batch(name, arguments.device)
    optimizer = optimizer_of(model)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _peak(arguments)
    for _ in range(3):
        step(model, optimizer, inputs)
    return _peak(arguments) if arguments.device == "cuda" else _peak(arguments) - before


def _peak(arguments: argparse.Namespace) -> int:
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Of this program alone: `ru_maxrss` begins with what its parent had.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def memory(name: str, form: str) -> int:
    """`peak_memory` in a process of its own."""
    made = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--memory", name, form], capture_output=True, check=True, text=True
    )
    return json.loads(made.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=["minilm", "pico-llama"])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "FORM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_memory(*arguments.memory, arguments))
        return
    figures: dict[str, Any] = {}
    for name in arguments.models:
        figures[name] = times(name, arguments)
        for form, figure in figures[name].items():
            figure["peak_bytes"] = memory(name, form)
            ratio, peak = figure["ratio_to_stock_r"], figure["peak_bytes"] / 2**20
            print(f"{name:11} {form:14} {figure['median_ms']:8.1f} ms  {ratio:.3f} x stock LoRA r  {peak:.0f} MiB")
    name = f"step-{arguments.device}" if arguments.device != "cpu" else "step"
    made = {"rank": RANK, "compiled": arguments.compile, "models": figures}
    print("written to", write_results(name, made))


if __name__ == "__main__":
    main()
