"""Measure the overhead of each command: processor time and peak memory for a model of two layers.

    python benchmarks/bench_start.py [--rounds N] [--without PYTHON]

In each round, every command runs once in a new process; figures are medians over rounds. The references are: importing
transformers alone (which imports torch only when a model is requested), building the model on the meta device with
transformers, and importing peft and transformers. `--without` names the Python of a second environment, with ailora and
without the quantization libraries. Writes `results/start.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import write_results

HERE = Path(__file__).resolve().parent
_MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
LlamaForCausalLM(config).save_pretrained({folder!r})
"""
_BUILD = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM
with torch.device("meta"):
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({folder!r}))
"""
_PEFT = "import peft, transformers; from transformers import AutoConfig"
_COMMAND = "import runpy; runpy.run_module('ailora', run_name='__main__', alter_sys=True)"
#: Start of every measured program: the last line of its standard error is its peak memory in bytes.
_MEASURED = """
import atexit, sys
sys.path.insert(0, {folder!r})
from process_memory import read_memory
del sys.path[0]
atexit.register(lambda: print(read_memory(), file=sys.stderr))
"""


def lines(folder: Path) -> dict[str, list[str]]:
    """Return program and arguments for each reference and command. Later commands read the outputs of earlier ones."""
    model, adapter, exported, merged = (str(folder / name) for name in ("model", "adapter", "exported", "merged"))
    commands = {
        "--help": ["--help"],
        "--version": ["--version"],
        "roles": ["roles", model],
        "plan": ["plan", model],
        "init": ["init", model, "--out", adapter, "--force"],
        "verify": ["verify", adapter, "--base", model],
        "inspect": ["inspect", adapter],
        "export": ["export", adapter, "--out", exported, "--force"],
        "merge": ["merge", model, adapter, "--out", merged, "--force"],
    }
    return {
        "import transformers": ["import transformers"],
        "transformers builds the model": [_BUILD.format(folder=model)],
        "import peft, transformers": [_PEFT],
    } | {f"ailora {name}": [_COMMAND, *arguments] for name, arguments in commands.items()}


def measure(python: str, program: str, *arguments: str) -> tuple[float, float]:
    """Run a program, and return its processor time in seconds and its peak resident memory in MiB."""
    command = [python, "-c", _MEASURED.format(folder=str(HERE)) + program, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{program} {arguments}: {message[-2000:]}")
    return usage.ru_utime + usage.ru_stime, int(message.splitlines()[-1]) / 2**20


def compare(python: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of all commands in an environment, also relative to importing peft and transformers."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([python, "-c", _MODEL.format(folder=str(folder / "model"))], check=True, capture_output=True)
        commands = lines(folder)
        for arguments in commands.values():
            measure(python, *arguments)  # fills the page cache, and writes byte code
        samples = {name: [] for name in commands}
        for _ in range(rounds):
            for name, arguments in commands.items():
                samples[name].append(measure(python, *arguments))
    medians = {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in samples.items()}
    reference = medians["import peft, transformers"][0]
    return {
        name: {"seconds": round(seconds, 3), "peak_mib": round(peak, 1), "of_peft": round(seconds / reference, 3)}
        for name, (seconds, peak) in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", help="Python of an environment without the quantization libraries")
    arguments = parser.parse_args()
    pythons = {"with quantization libraries": sys.executable} | (
        {"without": arguments.without} if arguments.without else {}
    )
    results = {name: compare(python, arguments.rounds) for name, python in pythons.items()}
    for environment, figures in results.items():
        print(environment)
        for name, row in figures.items():
            print(f"  {name:30} {row['seconds']:6.2f} s {row['peak_mib']:7.1f} MiB {row['of_peft']:6.2f}")
    write_results("start", {"rounds": arguments.rounds, "environments": results})


if __name__ == "__main__":
    main()
