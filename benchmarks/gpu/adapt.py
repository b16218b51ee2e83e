"""Wall time and peak memory of `ailora.adapt` on a 7B-shaped Llama in bfloat16, made on the device.

The goal is 2 s. Query and value weights have the spectrum of trained ones (`bench_step.base`).
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from bench_step import Setting, base
from part import PartArguments, parse_arguments

import ailora
from ailora.spectral import without_cache

GOAL_S = 2.0


def measure(model: Any, device: str) -> tuple[float, int]:
    """Return the seconds and the peak bytes of `adapt`, and remove the adapter again."""
    before = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    adapted = ailora.adapt(model, rank=8)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    adapted.unload()
    return seconds, peak


def main(arguments: PartArguments) -> None:
    name = "llama-tiny" if arguments.tiny else "llama-7b"
    model = base(Setting(name, device=arguments.device))
    for cache in (False, True):
        with nullcontext() if cache else without_cache():
            # Without a cache the first call loads the libraries' kernels. With one it fills the empty cache.
            calls = [measure(model, arguments.device) for _ in range(2 if cache else 4)]
        seconds = [took for took, _ in calls]
        figures = {
            "model": name,
            "dtype": "bfloat16",
            "cache": cache,
            "first_s": seconds[0],
            "median_of_later_s": statistics.median(seconds[1:]),
            "seconds": seconds,
            "peak_bytes": max(peak for _, peak in calls),
            "goal_s": GOAL_S,
        }
        later = "from the cache" if cache else "later"
        line = (
            f"adapt {name}{', cache on' if cache else ''}: first {seconds[0]:.2f} s, {later} "
            f"{figures['median_of_later_s']:.2f} s (goal {GOAL_S:.0f} s), "
            f"peak {figures['peak_bytes'] / 2**20:.0f} MiB beyond the model"
        )
        arguments.recorder.write("with cache" if cache else "without cache", figures, line)


if __name__ == "__main__":
    main(parse_arguments("adapt"))
