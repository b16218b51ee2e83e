"""Measure time, memory and bytes read of `init` and `merge`, which never load the whole checkpoint.

    python benchmarks/bench_checkpoints.py [--folder DIR] [--quick]

Writes two Llama checkpoints (4096 wide, grouped-query, bf16, shards of 2 GiB) of about 2 and 8 GiB into a folder. Their
attention weights have spectra like those of trained weights. Measures each of these in a new process: `init`; peft's
`pissa` and `pissa_niter_16` on the loaded model; and `merge`, compared with copying the files. Each starts without the
page cache. Memory is the peak resident size minus the resident size right after the imports. Writes
`results/checkpoints.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_spectral import trained_like
from machine import write_results
from process_memory import read_memory
from transformers import LlamaConfig

from ailora.checkpoints import InitPlan
from ailora.safetensors_io import TensorSpec, header_bytes

WIDTH, KEYS, INNER, VOCABULARY = 4096, 1024, 14336, 32000
RANK = 16
HERE = Path(__file__).resolve().parent
MIB = 2**20


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's tensors, in the order of its modules."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{prefix}.self_attn.k_proj.weight": (KEYS, WIDTH),
            f"{prefix}.self_attn.v_proj.weight": (KEYS, WIDTH),
            f"{prefix}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{prefix}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{prefix}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{prefix}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{prefix}.input_layernorm.weight": (WIDTH,),
            f"{prefix}.post_attention_layernorm.weight": (WIDTH,),
        }
    return found | {"model.norm.weight": (WIDTH,)}


def generate(folder: Path, layers: int) -> None:
    """Write a checkpoint and its configuration. The layers' attention weights differ only in the order of entries."""
    folder.mkdir(parents=True)
    kinds = {shape: trained_like(*shape, seed=sum(shape), device="cpu") for shape in ((WIDTH, WIDTH), (KEYS, WIDTH))}
    generator = torch.Generator().manual_seed(0)
    shards: list[list[TensorSpec]] = [[]]
    for name, shape in shapes(layers).items():
        planned = TensorSpec(name, "BF16", shape)
        if sum(p.nbytes for p in shards[-1]) + planned.nbytes > 2 * 2**30:
            shards.append([])
        shards[-1].append(planned)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as stream:
            stream.write(header_bytes(shard, {"format": "pt"}))
            for planned in shard:
                weight_map[planned.name] = file
                stream.write(_weight(planned.shape, kinds, generator).view(torch.uint8).numpy().data)
            stream.flush()
            os.fsync(stream.fileno())
    total = sum(p.nbytes for shard in shards for p in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)


def _weight(
    shape: tuple[int, ...], kinds: dict[tuple[int, ...], torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    if shape in kinds:
        rows, columns = (torch.randperm(size, generator=generator) for size in shape)
        return kinds[shape][rows][:, columns].to(torch.bfloat16).contiguous()
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03, generator=generator)).contiguous()


def drop_page_cache(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    os.sync()
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure_in_process(statement: str, *, threads: int | None = None) -> dict[str, Any]:
    """Run a statement in a new process after its imports, and return its seconds, memory and bytes read."""
    script = f"import bench_checkpoints as bench; bench.measure_here({statement!r}, {threads!r})"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=HERE, check=False)
    if made.returncode:
        raise RuntimeError(made.stderr[-4000:])
    return json.loads(made.stdout.splitlines()[-1])


def measure_here(statement: str, threads: int | None) -> None:
    """Run a statement in this process, and print its figures as JSON."""
    import peft  # noqa: F401
    import transformers

    from ailora import checkpoints

    transformers.logging.set_verbosity_error()
    if threads:
        torch.set_num_threads(threads)
    scope = {"checkpoints": checkpoints, "torch": torch, "pissa": _pissa}
    resident = read_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    read = _bytes_read()
    started = time.perf_counter()
    report = eval(statement, scope)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "seconds": seconds,
                "imports_mib": resident / MIB,
                "peak_mib": (read_memory() - resident) / MIB,
                "read_mib": (_bytes_read() - read) / MIB,
                "report": report.to_dict() if hasattr(report, "to_dict") else None,
            }
        )
    )


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def _pissa(folder: str, how: str) -> None:
    """Load the model and let peft decompose it, as a user of peft does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], init_lora_weights=how, task_type="CAUSAL_LM"
    )
    get_peft_model(model, config)


def init_case(folder: Path, out: Path, *, workers: int = 1, threads: int | None = None) -> dict[str, Any]:
    """Measure `init` on a checkpoint that is not in the page cache."""
    drop_page_cache(folder)
    call = f"checkpoints.init({str(folder)!r}, {str(out)!r}, rank={RANK}, cached=False, force=True, workers={workers})"
    made = measure_in_process(call, threads=threads)
    work = InitPlan.from_model(str(folder), rank=RANK)
    estimate = work.estimate()
    parts = made["report"]["seconds"]
    figures = {
        "seconds": made["seconds"],
        "parts": parts,
        "decompose_share": parts["decompose"] / (parts["read"] + parts["decompose"] + parts["write"]),
        "peak_mib": made["peak_mib"],
        "bound_mib": estimate["memory_bound_bytes"] / MIB,
        "imports_mib": made["imports_mib"],
        "read_mib": made["read_mib"],
        "target_mib": estimate["bytes_to_read"] / MIB,
        "estimated_seconds": estimate["seconds"],
    }
    print(f"init {folder.name}, {workers} workers, threads {threads}: {json.dumps(figures)}", flush=True)
    return figures


def ranks_case(folder: Path, out: Path, *, ranks: int) -> dict[str, Any]:
    """Measure `ailora init` under torchrun, with one thread for each rank. The seconds exclude the imports."""
    drop_page_cache(folder)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write("from ailora.cli import main\nmain()\n")
        script.flush()
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--master-port=29777"]
        command = ["init", str(folder), "--rank", str(RANK), "--no-cache", "--json", "--out", str(out)]
        made = subprocess.run(
            [*launch, script.name, *command],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    report = json.loads(next(line for line in made.stdout.splitlines() if line.startswith("{")))
    figures = {"seconds": report["seconds"]["total"], "ranks": ranks}
    print(f"{ranks} ranks {folder.name}: {json.dumps(figures)}", flush=True)
    return figures


def merge_case(folder: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Measure `merge` and copying the same files, alternately. Both include flushing to the disk."""
    merged, copied = [], []
    for _ in range(3):
        drop_page_cache(folder)
        call = f"checkpoints.merge({str(folder)!r}, {str(adapter)!r}, {str(out)!r}, force=True)"
        merged.append(measure_in_process(call))
        shutil.rmtree(out)
        drop_page_cache(folder)
        started = time.perf_counter()
        shutil.copytree(folder, out)
        for file in out.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        copied.append(time.perf_counter() - started)
        shutil.rmtree(out)
    seconds = statistics.median(made["seconds"] for made in merged)
    figures = {
        "seconds": seconds,
        "copy_seconds": statistics.median(copied),
        "share_of_copy_speed": statistics.median(copied) / seconds,
        "peak_mib": max(made["peak_mib"] for made in merged),
        "all_seconds": [made["seconds"] for made in merged],
        "all_copy_seconds": copied,
    }
    print(f"merge {folder.name}: {json.dumps(figures)}", flush=True)
    return figures


def pissa_case(folder: Path) -> dict[str, Any]:
    """Measure the inits of peft on the loaded model."""
    figures = {}
    for how in ("pissa", "pissa_niter_16"):
        drop_page_cache(folder)
        made = measure_in_process(f"pissa({str(folder)!r}, {how!r})")
        figures[how] = {"seconds": made["seconds"], "peak_mib": made["peak_mib"]}
        print(f"{how} {folder.name}: {json.dumps(figures[how])}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder with the checkpoints")
    parser.add_argument("--quick", action="store_true", help="small checkpoints, to test this script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        run(Path(made), (1, 2) if options.quick else (5, 20), write=not options.quick)


def run(work: Path, layers: tuple[int, int], *, write: bool) -> None:
    """Measure all cases on a small and a large checkpoint."""
    small, large = work / "small", work / "large"
    for folder, count in zip((small, large), layers, strict=True):
        generate(folder, count)
    figures: dict[str, Any] = {"rank": RANK, "layers": list(layers)}
    figures["init"] = {"small": init_case(small, work / "a"), "large": init_case(large, work / "b")}
    figures["ranks"] = {
        "one rank, one thread": ranks_case(large, work / "c", ranks=1),
        "two ranks, one thread each": ranks_case(large, work / "d", ranks=2),
    }
    one, two = figures["ranks"].values()
    figures["ranks"]["speedup"] = one["seconds"] / two["seconds"]
    figures["workers"] = {
        "one worker, two threads": figures["init"]["large"]["seconds"],
        "two workers, one thread each": init_case(large, work / "e", workers=2)["seconds"],
    }
    figures["peft"] = pissa_case(small)
    # The machine is noisy, so `init` is measure_in_process before and after peft.
    again = init_case(small, work / "f")
    ours = {key: (figures["init"]["small"][key] + again[key]) / 2 for key in ("seconds", "peak_mib")}
    figures["peft_over_init"] = {
        how: {key: made[key] / ours[key] for key in ours} for how, made in figures["peft"].items()
    }
    figures["merge"] = merge_case(large, work / "b", work / "merged")
    print(json.dumps(figures["peft_over_init"]))
    if write:
        print(write_results("checkpoints", figures))


if __name__ == "__main__":
    main()
