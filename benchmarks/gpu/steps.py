"""Step time and peak memory of every form on 1B- and 7B-shaped Llamas, with and without `torch.compile`.

The goal is at most 1.02 of stock LoRA of the same rank for the anchored form. Compiled models have four layers: a
compiler takes a minute for each form of all of them, and every layer costs the same.
"""

from __future__ import annotations

import torch
from bench_step import Setting, times
from part import PartArguments, parse_arguments

GOAL_RATIO = 1.02
COMPILED_LAYERS = 4


def settings(device: str) -> list[Setting]:
    """Measurements, the most informative first."""
    return [
        Setting("llama-1b", device=device),
        Setting("llama-7b", device=device, steps=10),
        # The residual form needs float32 weights.
        Setting("llama-1b", device=device, dtype=torch.float32, layers=COMPILED_LAYERS),
        Setting("llama-1b", device=device, compile=True, layers=COMPILED_LAYERS),
        Setting("llama-7b", device=device, compile=True, layers=COMPILED_LAYERS),
    ]


def tiny_settings(device: str) -> list[Setting]:
    """The same on a tiny model; not compiled, which takes a minute on a CPU."""
    return [
        Setting("llama-tiny", device=device, steps=2),
        Setting("llama-tiny", device=device, steps=2, dtype=torch.float32),
    ]


def main(arguments: PartArguments) -> None:
    for setting in (tiny_settings if arguments.tiny else settings)(arguments.device):
        dtype = str(setting.dtype).removeprefix("torch.")
        layers = f", {setting.layers} layers" if setting.layers else ""
        name = f"{setting.model} {dtype}{layers}{', compiled' if setting.compile else ''}"
        figures = times(setting, setting.forms)
        lines = [
            f"{name}: {form:14} {figure['median_ms']:8.2f} ms  {figure['ratio_to_stock_r']:.3f} x stock LoRA r  "
            f"step peak {figure.get('step_peak_bytes', 0) / 2**20:.0f} MiB"
            for form, figure in figures.items()
        ]
        what = {"model": setting.model, "dtype": dtype, "layers": setting.layers, "compiled": setting.compile}
        arguments.recorder.write(name, what | {"goal_ratio": GOAL_RATIO, "forms": figures}, "\n".join(lines))
        if setting.device == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(parse_arguments("steps"))
