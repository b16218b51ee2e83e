"""Compare the cost of a training step in each form with PEFT's LoRA of rank r, LoRA of rank 2r, and DoRA.

    python benchmarks/bench_step.py [--steps 15] [--models minilm pico-llama] [--shared ../shared]
    python benchmarks/bench_step.py --models llama-1b llama-7b --device cuda --compile

All forms of a model are in memory and take turns, so that the machine's noise affects all of them. Figures are medians
and their ratios. The forms share the frozen weights of the base, so that five forms of a 7B-shaped model fit on a GPU.
Memory is the peak of a new process minus its memory after loading, or the largest allocation of CUDA.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_spectral import trained_like
from machine import write_results
from peft import LoraConfig, get_peft_model
from process_memory import read_memory
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

import ailora
from ailora.model_loading import resolve_model

RANK = 8
ROOT = Path(__file__).resolve().parents[1]
#: (hidden, intermediate, layers, heads, key-value heads) of models from a configuration.
SHAPES = {
    "llama-tiny": (64, 128, 2, 4, 2),
    "llama-1b": (2048, 8192, 16, 32, 8),
    "llama-7b": (4096, 11008, 32, 32, 32),
}
#: (rows, tokens) of a batch of a model from a configuration.
BATCHES = {"llama-tiny": (2, 16)}
RESIDUAL = "residual"
FORMS = ("stock LoRA r", "stock LoRA 2r", "stock DoRA r", "anchored", RESIDUAL)


@dataclass(frozen=True)
class Setting:
    """Model and conditions of a measurement.

    Attributes:
        model: `minilm`, `pico-llama` or a name in `SHAPES`.
        device: Device of torch.
        dtype: Dtype of the weights of a model in `SHAPES`; other models are float32.
        layers: Number of layers. None means the number in `SHAPES`.
        compile: Whether the adapted model is compiled.
        steps: Number of measured steps, after two warm-up steps.
        shared: Folder that contains pico-llama.
    """

    model: str
    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    layers: int | None = None
    compile: bool = False
    steps: int = 15
    shared: Path = ROOT.parent / "shared"

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms that this model can have. The residual form needs float32 weights."""
        half = self.model in SHAPES and self.dtype is not torch.float32
        return tuple(form for form in FORMS if not (half and form == RESIDUAL))


def base(setting: Setting) -> Any:
    """Load or build the base model. Every call returns the same weights."""
    torch.manual_seed(0)
    if setting.model == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(resolve_model("builtin:minilm"), num_labels=2)
    if setting.model == "pico-llama":
        return AutoModelForCausalLM.from_pretrained(setting.shared / "lm" / "pico-llama")
    hidden, intermediate, layers, heads, groups = SHAPES[setting.model]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=setting.layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        use_cache=False,
    )
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    set_trained_spectra(model, setting.device)
    return model


@torch.no_grad()
def set_trained_spectra(model: Any, device: str) -> None:
    """Overwrite all query and value weights with a matrix from `trained_like`, with rows in a different order for each.

    The singular values of random matrices are so close together that their decomposition is not typical of real models.
    """
    generator = torch.Generator().manual_seed(0)
    originals: dict[tuple[int, int], torch.Tensor] = {}
    for projection in ailora.find_projections(model):
        if projection.role in ("query", "value"):
            weight = model.get_submodule(projection.module).weight
            if weight.shape not in originals:
                originals[weight.shape] = trained_like(*weight.shape, seed=0, device=device)
            order = torch.randperm(weight.shape[0], generator=generator).to(device)
            weight.copy_(originals[weight.shape][order])


def batch(setting: Setting) -> dict[str, torch.Tensor]:
    """Draw a batch of random tokens, of a typical size."""
    generator = torch.Generator().manual_seed(0)
    if setting.model == "minilm":
        ids = torch.randint(1000, 30000, (32, 32), generator=generator)
        inputs = {"input_ids": ids, "labels": torch.randint(0, 2, (32,), generator=generator)}
    else:
        rows, length = (16, 72) if setting.model == "pico-llama" else BATCHES.get(setting.model, (4, 512))
        ids = torch.randint(5, 4000, (rows, length), generator=generator)
        inputs = {"input_ids": ids, "labels": ids}
    return {name: tensor.to(setting.device) for name, tensor in inputs.items()}


def adapted(original: Any, form: str, setting: Setting) -> Any:
    """Build the adapter of a form on the weights of a base model, ready to train."""
    # The residual form overwrites the weights that it adapts.
    kept = [] if form == RESIDUAL else list(original.parameters())
    model = copy.deepcopy(original, {id(parameter): parameter for parameter in kept})
    if form.startswith("stock"):
        rank = 2 * RANK if form.endswith("2r") else RANK
        targets = ["query", "value"] if setting.model == "minilm" else ["q_proj", "v_proj"]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, use_dora="DoRA" in form)
        model = get_peft_model(model, config)
    else:
        model = ailora.adapt(model, rank=RANK, form=form)
    model = model.to(setting.device).train()
    return torch.compile(model) if setting.compile else model


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)


def step(model: Any, optimizer: torch.optim.Optimizer, inputs: dict[str, torch.Tensor]) -> float:
    """Run a forward, backward and AdamW step, and return its seconds."""
    started = time.perf_counter()
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def times(setting: Setting, forms: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the median seconds of each form, and the median over rounds of its ratio to the first form."""
    inputs, original = batch(setting), base(setting)
    models = {form: adapted(original, form, setting) for form in forms}
    optimizers = {form: optimizer_of(model) for form, model in models.items()}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    peaks = dict.fromkeys(forms, 0)
    order = random.Random(0)
    for round_number in range(setting.steps + 2):
        for form in order.sample(forms, len(forms)):
            before = _reset_cuda_peak(setting)
            took = step(models[form], optimizers[form], inputs)
            if round_number >= 2:  # the first rounds warm up
                seconds[form].append(took)
                peaks[form] = max(peaks[form], _cuda_peak(setting) - before)
    reference = seconds[forms[0]]
    tokens = inputs["input_ids"].numel()
    return {
        form: {
            "median_ms": 1e3 * statistics.median(taken),
            "tokens_per_second": tokens / statistics.median(taken),
            "ratio_to_stock_r": statistics.median(a / b for a, b in zip(taken, reference, strict=True)),
            "trainable_parameters": sum(p.numel() for p in models[form].parameters() if p.requires_grad),
        }
        | ({"step_peak_bytes": peaks[form]} if setting.device == "cuda" else {})
        for form, taken in seconds.items()
    }


def _reset_cuda_peak(setting: Setting) -> int:
    """Reset CUDA's peak, and return the bytes in use, without activations, gradients and temporary tensors."""
    if setting.device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _cuda_peak(setting: Setting) -> int:
    return torch.cuda.max_memory_allocated() if setting.device == "cuda" else 0


def peak_memory(form: str, setting: Setting) -> int:
    """Return the peak bytes of three steps in this process, beyond the adapted model."""
    model, inputs = adapted(base(setting), form, setting), batch(setting)
    optimizer = optimizer_of(model)
    _reset_cuda_peak(setting)
    before = _peak(setting)
    for _ in range(3):
        step(model, optimizer, inputs)
    return _peak(setting) if setting.device == "cuda" else _peak(setting) - before


def _peak(setting: Setting) -> int:
    return _cuda_peak(setting) if setting.device == "cuda" else read_memory()


def memory(name: str, form: str) -> int:
    """Return `peak_memory` of a new process."""
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
    conditions = {name: getattr(arguments, name) for name in ("device", "compile", "steps", "shared")}
    if arguments.memory:
        name, form = arguments.memory
        print(peak_memory(form, Setting(name, **conditions)))
        return
    figures: dict[str, Any] = {}
    for name in arguments.models:
        setting = Setting(name, **conditions)
        figures[name] = times(setting, setting.forms)
        for form, figure in figures[name].items():
            figure["peak_bytes"] = memory(name, form)
            ratio, peak = figure["ratio_to_stock_r"], figure["peak_bytes"] / 2**20
            print(f"{name:11} {form:14} {figure['median_ms']:8.1f} ms  {ratio:.3f} x stock LoRA r  {peak:.0f} MiB")
    name = f"step-{arguments.device}" if arguments.device != "cpu" else "step"
    made = {"rank": RANK, "compiled": arguments.compile, "models": figures}
    print("written to", write_results(name, made))


if __name__ == "__main__":
    main()
