"""Compare truncated decompositions with full SVDs: time, error, scaling, and a whole model.

    python benchmarks/bench_spectral.py [--device cpu] [--quick]

Each case is timed in the same run as its references: `torch.linalg.svd` in float32, as in peft's `pissa` and `mica`,
and `torch.svd_lowrank` with 16 iterations (`pissa_niter_16`). Results are medians, ratios, and the error of the
subspaces relative to the SVD in float64. Weights have spectra like those of trained attention weights: first a power
law, then a decrease to nearly zero. The weights of MiniLM are measured too. Writes `results/spectral-DEVICE.json` and a
plot to `docs/images`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from process_memory import read_memory
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ailora.model_loading import resolve_model
from ailora.spectral import algorithms, truncated_svd

RANK = 16
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Timed = tuple[float, Any]


def spectrum(size: int) -> torch.Tensor:
    """Return singular values (size,): 10 i^-1/2 for the first eighth, then a straight line down to nearly zero."""
    values = 10 * torch.arange(1, size + 1, dtype=torch.float64) ** -0.5
    heads = size // 8
    rest = size - heads
    values[heads:] = values[heads - 1] * (rest - torch.arange(rest, dtype=torch.float64) - 0.5) / rest
    return values


def trained_like(out: int, in_: int, *, seed: int, device: str) -> torch.Tensor:
    """Return a float32 weight (out, in) with the singular values of `spectrum` and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    small = min(out, in_)
    normal = [torch.randn(n, small, generator=generator, dtype=torch.float64) for n in (out, in_)]
    # QR runs on the device: on a CPU, two QRs of 8192 columns take longer than all decompositions on a GPU.
    U, V = (torch.linalg.qr(matrix.to(device)).Q for matrix in normal)
    return ((U * spectrum(small).to(device)) @ V.T).float()


def timed(call: Callable[[], Any], repeats: int) -> Timed:
    """Call a function several times, and return the median of the seconds and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def distance(reference: torch.Tensor, basis: torch.Tensor) -> float:
    """Return the sine of the largest angle between two subspaces.

    Args:
        reference: Orthonormal basis, as columns.
        basis: Any basis, as columns.
    """
    basis = torch.linalg.qr(basis.double()).Q
    return float(torch.linalg.matrix_norm(basis - reference @ (reference.mT @ basis), 2))


def worst(reference: tuple[torch.Tensor, ...], rows: slice, U: torch.Tensor, Vh: torch.Tensor) -> float:
    """Return the larger of the errors of the left and of the right subspace."""
    return max(distance(reference[0][:, rows], U), distance(reference[2][rows].mT, Vh.mT))


def case(weight: torch.Tensor, band: str, repeats: int, *, full: Timed) -> dict[str, Any]:
    """Time a band of a weight by `truncated_svd`, and the principal band also by `svd_lowrank(niter=16)`.

    Args:
        weight: Weight (out, in).
        band: `principal` or `minor`.
        repeats: Number of repetitions.
        full: Seconds and result of the full SVD in float32.
    """
    reference = torch.linalg.svd(weight.double(), full_matrices=False)
    small = min(weight.shape)
    rows = slice(0, RANK) if band == "principal" else slice(small - RANK, small)
    seconds, made = timed(lambda: truncated_svd(weight, RANK, band), repeats)
    figures = {
        "shape": list(weight.shape),
        "band": band,
        "method": made.certificate.method,
        "seconds": seconds,
        "full_svd_seconds": full[0],
        "speedup": full[0] / seconds,
        "error": worst(reference, rows, made.U, made.Vh),
        "full_svd_error": worst(reference, rows, full[1][0][:, rows], full[1][2][rows]),
        "certified_residual": made.certificate.residual,
    }
    if band == "principal":
        lowrank_seconds, (U, _, V) = timed(lambda: torch.svd_lowrank(weight, q=RANK, niter=16), repeats)
        figures |= {"svd_lowrank_seconds": lowrank_seconds, "svd_lowrank_error": worst(reference, rows, U, V.mT)}
    print(
        f"{weight.shape[0]:5} x {weight.shape[1]:<5} {band:9} {figures['method']:8} {seconds:8.4f} s  "
        f"{figures['speedup']:6.1f} x full SVD   error {figures['error']:.1e} (full SVD {figures['full_svd_error']:.1e}"
        + (
            f", svd_lowrank {figures['svd_lowrank_error']:.2f} in {figures['svd_lowrank_seconds']:.3f} s)"
            if band == "principal"
            else ")"
        ),
        flush=True,
    )
    return figures


def square_cases(sizes: tuple[int, ...], device: str) -> list[dict[str, Any]]:
    made = []
    for size in sizes:
        weight = trained_like(size, size, seed=size, device=device)
        repeats = 3 if size >= 4096 else 9
        full = timed(lambda w=weight: torch.linalg.svd(w, full_matrices=False), 1 if size >= 4096 else repeats)
        made += [case(weight, band, repeats, full=full) for band in ("principal", "minor")]
    return made


def grouped_value(device: str) -> dict[str, Any]:
    weight = trained_like(1024, 4096, seed=7, device=device)
    full = timed(lambda: torch.linalg.svd(weight, full_matrices=False), 3)
    return case(weight, "minor", 5, full=full)


def minilm(device: str) -> dict[str, Any]:
    """Time both bands of all query and value weights of MiniLM, and return total times and the largest error."""
    weights = load_file(f"{resolve_model('builtin:minilm')}/model.safetensors")
    chosen = [w.to(device) for n, w in weights.items() if n.endswith(("self.query.weight", "self.value.weight"))]
    ours, full, errors = 0.0, 0.0, []
    for weight in chosen:
        reference = torch.linalg.svd(weight.double(), full_matrices=False)
        full += timed(lambda w=weight: torch.linalg.svd(w, full_matrices=False), 9)[0]
        for band, rows in (("principal", slice(0, RANK)), ("minor", slice(384 - RANK, 384))):
            seconds, made = timed(lambda w=weight, b=band: truncated_svd(w, RANK, b), 9)
            ours += seconds / 2
            errors.append(worst(reference, rows, made.U, made.Vh))
    print(f"MiniLM, {len(chosen)} weights: {ours:.3f} s a band, full SVD {full:.3f} s; worst error {max(errors):.1e}")
    return {"weights": len(chosen), "seconds_per_band": ours, "full_svd_seconds": full, "worst_error": max(errors)}


def floor(weight: torch.Tensor, seconds: float) -> dict[str, float]:
    """Compare the time of the minor triplets with the time of their flops at the rate of a matrix product.

    Counted flops are 2/3 n^3 for the LU factorization, and 2 n^2 for each column in a product or a solve.
    """
    n = weight.shape[0]
    product, _ = timed(lambda: weight @ weight, 3)
    rate = 2 * n**3 / product
    solved: list[int] = []
    solve, adjoint = algorithms._LUFactorization.solve, algorithms._LUFactorization.solve_adjoint

    def counting(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda self, X: (solved.append(X.shape[-1]), function(self, X))[1]

    algorithms._LUFactorization.solve, algorithms._LUFactorization.solve_adjoint = counting(solve), counting(adjoint)
    try:
        with FlopCounterMode(display=False) as products:
            truncated_svd(weight, RANK, "minor")
    finally:
        algorithms._LUFactorization.solve, algorithms._LUFactorization.solve_adjoint = solve, adjoint
    flops = 2 / 3 * n**3 + 2 * n**2 * sum(solved) + products.get_total_flops()
    multiple = seconds / (flops / rate)
    print(
        f"{rate / 1e9:.0f} GFLOP/s in float32; minor {n}: {flops / 1e9:.0f} GFLOP, {multiple:.1f} x the time of these"
    )
    return {"gflops_rate": rate / 1e9, "gflop_used": flops / 1e9, "multiple_of_floor": multiple}


def scaling(sizes: tuple[int, ...], ranks: tuple[int, ...], device: str) -> list[dict[str, Any]]:
    made = []
    for size in sizes:
        weight = trained_like(size, size, seed=size, device=device)
        for rank in (r for r in ranks if r <= size // 4):
            for band in ("principal", "minor"):
                seconds, triplets = timed(lambda w=weight, r=rank, b=band: truncated_svd(w, r, b), 1)
                made.append(
                    {"size": size, "rank": rank, "band": band, "seconds": seconds}
                    | {"method": triplets.certificate.method}
                )
                print(f"  {size:5} r={rank:<4} {band:9} {seconds:8.3f} s  {triplets.certificate.method}", flush=True)
    return made


def whole_model(layers: int, device: str) -> dict[str, Any]:
    """Decompose query (principal) and value (minor) of a 7B-shaped model, one matrix at a time, in a new process.

    All layers have the same weight with permuted rows: the spectrum is the same, but no method can reuse results.
    """
    script = f"from bench_spectral import measure_model; measure_model({layers}, {device!r})"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=HERE)
    figures = json.loads(made.stdout.splitlines()[-1])
    print(
        f"{layers} layers of a 7B-shaped model: {figures['seconds']:.0f} s; peak memory {figures['peak_mib']:.0f} MiB "
        f"over the start's, bound {figures['bound_mib']:.0f} MiB"
    )
    return figures


def measure_model(layers: int, device: str) -> None:
    """Run the body of `whole_model`, and print its figures as JSON."""
    weight = trained_like(4096, 4096, seed=0, device=device)
    torch.save(weight, file := Path(tempfile.mkdtemp()) / "weight.pt")
    del weight
    script = f"from bench_spectral import decompose_model; decompose_model({layers}, {str(file)!r})"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=HERE)
    file.unlink()
    print(made.stdout.splitlines()[-1])


def decompose_model(layers: int, file: str) -> None:
    """Decompose the weights, and print the figures as JSON. Nothing else runs here, so the peak memory is theirs."""
    start = read_memory()
    weight, seconds = torch.load(file), 0.0
    for layer in range(layers):
        generator = torch.Generator().manual_seed(layer)
        weight = weight[torch.randperm(4096, generator=generator)]
        began = time.perf_counter()
        truncated_svd(weight, RANK, "principal")
        truncated_svd(weight, RANK, "minor")
        seconds += time.perf_counter() - began
    peak = (read_memory() - start) / 2**20
    bound = 6 * 4 * 4096**2 / 2**20 + 128
    print(json.dumps({"layers": layers, "seconds": seconds, "peak_mib": peak, "bound_mib": bound}))


def peers(size: int, device: str) -> dict[str, float]:
    """Time the SVD inits of peft and both bands of `truncated_svd` on a layer."""
    weight = trained_like(size, size, seed=0, device=device)
    seconds = {}
    for init in ("pissa", "pissa_niter_16", "mica"):
        model = nn.Sequential(nn.Linear(size, size, bias=False, device=device))
        with torch.no_grad():
            model[0].weight.copy_(weight)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"], init_lora_weights=init)
        seconds[f"peft {init}"] = timed(lambda m=model, c=config: get_peft_model(m, c), 1)[0]
    for band in ("principal", "minor"):
        seconds[f"ailora {band}"] = timed(lambda b=band: truncated_svd(weight, RANK, b), 3)[0]
    print(f"one {size} x {size} layer: " + ", ".join(f"{name} {took:.3f} s" for name, took in seconds.items()))
    return seconds


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Plot seconds over size at rank 16, and over rank at size 4096."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for band, mark in (("principal", "o-"), ("minor", "s--")):
        sizes = [(r["size"], r["seconds"]) for r in rows if r["band"] == band and r["rank"] == RANK]
        ranks = [(r["rank"], r["seconds"]) for r in rows if r["band"] == band and r["size"] == 4096]
        for axis, points in ((left, sizes), (right, ranks)):
            x, y = zip(*points, strict=True)
            axis.loglog(x, y, mark, label=band)
            axis.set_xticks(x, [str(value) for value in x])
            axis.minorticks_off()
    left.set(xlabel="n of an n x n weight, r = 16", ylabel="seconds")
    right.set(xlabel="r, n = 4096", ylabel="seconds")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="only the cases of the table")
    arguments = parser.parse_args()
    device = arguments.device
    cases = square_cases((384, 768, 4096), device)
    cases.append(grouped_value(device))
    by = {(tuple(c["shape"]), c["band"]): c for c in cases}
    query, value, grouped = by[(4096, 4096), "principal"], by[(4096, 4096), "minor"], by[(1024, 4096), "minor"]
    pairs = {
        name: (query["full_svd_seconds"] + v["full_svd_seconds"]) / (query["seconds"] + v["seconds"])
        for name, v in (("Q and V 4096 x 4096", value), ("Q 4096 x 4096, V 1024 x 4096", grouped))
    }
    for name, speedup in pairs.items():
        print(f"one layer, {name}: {speedup:.1f} x full SVDs")
    figures: dict[str, Any] = {"rank": RANK, "cases": cases, "layers": pairs, "minilm": minilm(device)}
    figures["floor"] = floor(trained_like(4096, 4096, seed=4096, device=device), value["seconds"])
    if not arguments.quick:
        figures["peers"] = peers(4096, device)
        figures["scaling"] = scaling((512, 1024, 2048, 4096, 8192), (1, 4, 16, 64, 256), device)
        plot(figures["scaling"], ROOT / "docs" / "images" / "spectral-scaling.png")
        figures["whole_model"] = whole_model(32, device)
    print("written to", write_results(f"spectral-{device}", figures))


if __name__ == "__main__":
    main()
