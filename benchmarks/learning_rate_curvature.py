"""Test whether the curvature at step 0 predicts each policy's best learning rate, by several rules and sweeps.

    python benchmarks/learning_rate_curvature.py --task e2e --policies lora pissa milora ailora reversed
    python benchmarks/learning_rate_sweep.py --task e2e
    python benchmarks/learning_rate_curvature.py --summary

Measurements are lines of `out/learning_rate_curvature/curvature.jsonl`; the summary goes to `results/`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from learning_rate_sweep import OUT, RANK, STEPS, TASKS, Batch, adapted, parser
from machine import write_results
from torch import Tensor

import ailora
from ailora.optim.curvature import curvature_by_role, largest_eigenvalues, start_vector
from ailora.optim.hessian import ALL, Block, Loss, blocks_by_role, hessian_products
from ailora.optim.param_groups import role_factors


def curvature(arguments: argparse.Namespace) -> None:
    """Measure every policy on the same four batches, the quarters of the first training batch."""
    OUT.mkdir(parents=True, exist_ok=True)
    task = TASKS[arguments.task](arguments)
    first = task.train[0]
    size = len(first["input_ids"]) // 4
    cut = [{k: v[i * size : (i + 1) * size] for k, v in first.items()} for i in range(4)]
    for policy in arguments.policies:
        model = adapted(task, policy).eval()
        losses = [partial(_loss, model, batch) for batch in cut]
        found: dict[str, Any] = {"task": arguments.task, "policy": policy, "movement": movement(model)}
        for name in arguments.measures:
            started = time.perf_counter()
            found[name] = MEASURES[name](model, losses)
            found[f"{name}_seconds"] = time.perf_counter() - started
        line = json.dumps(found)
        with (OUT / "curvature.jsonl").open("a") as lines:
            lines.write(line + "\n")
        print(line, flush=True)


def _loss(model: Any, batch: Batch) -> Tensor:
    return model(**batch).loss


def plain(model: Any, losses: Sequence[Loss]) -> dict[str, dict[str, float]]:
    """Compute the largest eigenvalue of the Hessian."""
    return {key: vars(found) for key, found in curvature_by_role(model, losses).items()}


def adam(model: Any, losses: Sequence[Loss]) -> dict[str, dict[str, float]]:
    """Compute the largest eigenvalue of `D^-1/2 H D^-1/2` with Adam's metric D, over parameters that Adam moves."""
    blocks = blocks_by_role(model)
    scales = {key: adam_scale(g).sqrt() for key, g in gradients(model, losses).items()}

    def products(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        some = {key: blocks[key] for key in vectors}
        made = hessian_products(model, losses, some, {key: scales[key] * v for key, v in vectors.items()})
        return {key: scales[key] * product for key, product in made.items()}

    starts = {key: start_vector(block, 0) * (scales[key] > 0) for key, block in blocks.items()}
    return {key: vars(v) for key, v in largest_eigenvalues(products, starts, iterations=12, tolerance=0.1).items()}


def step(model: Any, losses: Sequence[Loss]) -> dict[str, dict[str, float]]:
    """Compute the parabola along Adam's direction u: slope `<g, u>`, bend `<u, H u>`, and the error of their ratio."""
    slopes = gradients(model, losses)
    directions = {key: g.mean(dim=0) * adam_scale(g) for key, g in slopes.items()}
    bends = hessian_products(model, losses, blocks_by_role(model), directions)
    found = {}
    for key, u in directions.items():
        slope, bend = slopes[key] @ u, bends[key] @ u
        ratio = slope.mean() / bend.mean()
        error = (slope - ratio * bend).std() / len(losses) ** 0.5 / bend.mean().abs()
        found[key] = {"slope": slope.mean().item(), "bend": bend.mean().item(), "error": error.item()}
    return found


def apart(model: Any, losses: Sequence[Loss]) -> dict[str, dict[str, float]]:
    """Compute the larger of the largest eigenvalues of the block of `A` and of the block of `B`.

    The block of mixed derivatives is left out. It depends on the gradient in W, which is the same for all inits.
    """
    parameters = dict(model.named_parameters())
    groups: dict[str, list[Any]] = {}
    for name, (roles, factor) in role_factors(model).items():
        groups.setdefault(f"{roles[0]}.{factor}", []).append(parameters[name])
    blocks = {key: Block(tuple(group)) for key, group in groups.items()}

    def products(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return hessian_products(model, losses, {key: blocks[key] for key in vectors}, vectors)

    starts = {key: start_vector(block, 0) for key, block in blocks.items()}
    found = largest_eigenvalues(products, starts, iterations=8, tolerance=0.15)
    roles = dict.fromkeys(key.partition(".")[0] for key in found)
    return {
        role: vars(max((found[f"{role}.{f}"] for f in "AB" if f"{role}.{f}" in found), key=lambda c: c.value))
        for role in roles
    }


MEASURES: dict[str, Callable[[Any, Sequence[Loss]], dict[str, dict[str, float]]]] = {
    "plain": plain,
    "apart": apart,
    "adam": adam,
    "step": step,
}


def gradients(model: Any, losses: Sequence[Loss]) -> dict[str, Tensor]:
    """Compute the gradient of each batch with respect to the factors of each role, (batches, n)."""
    blocks = blocks_by_role(model)
    every = list(dict.fromkeys(p for block in blocks.values() for p in block.parameters))
    made = [dict(zip(every, torch.autograd.grad(loss(), every), strict=True)) for loss in losses]
    return {key: torch.stack([block.vector(batch) for batch in made]) for key, block in blocks.items()}


def adam_scale(gradient: Tensor) -> Tensor:
    """Compute the factors (n,) that Adam multiplies a mean gradient by, after many steps. 0 for a zero gradient."""
    size = gradient.square().mean(dim=0).sqrt()
    return torch.where(size > 0, 1 / (size + 1e-8), 0)


def movement(model: Any) -> dict[str, float]:
    """Compute `(out |A0|^2 + in |B0|^2)^1/2`, how far W moves by a step of random signs. This needs no data."""
    squares: dict[str, float] = {}
    for module, group in ailora.get_plan(model).modules.items():
        layer = model.get_base_model().get_submodule(module)
        A, B = (getattr(f, "anchor", f.weight).detach() for f in (layer.lora_A["default"], layer.lora_B["default"]))
        square = float(B.shape[0] * A.norm() ** 2 + A.shape[1] * B.norm() ** 2)
        for key in (group[0].projection.role.value, "all"):
            squares[key] = squares.get(key, 0.0) + square
    return {key: math.sqrt(square) for key, square in squares.items()}


def predicted(own: dict[str, Any], lora: dict[str, Any], key: str) -> dict[str, float | None]:
    """Return the factor by which each rule multiplies LoRA's rate, or None if the rule does not apply."""

    def eigenvalues(name: str) -> float | None:
        ours, theirs = own.get(name, {}).get(key), lora.get(name, {}).get(key)
        return theirs["value"] / ours["value"] if ours and theirs else None

    def rate(found: dict[str, Any]) -> float | None:
        made = found.get("step", {}).get(key)
        return made["slope"] / made["bend"] if made and made["bend"] > 0 else None

    ratio, alone, ours, theirs = eigenvalues("plain"), eigenvalues("apart"), rate(own), rate(lora)
    return {
        "eigenvalue": ratio,
        "root of eigenvalue": ratio and math.sqrt(ratio),
        "root of eigenvalue, A and B apart": alone and math.sqrt(alone),
        "eigenvalue in Adam's metric": eigenvalues("adam"),
        "along Adam's direction": ours / theirs if ours and theirs else None,
        "movement": lora["movement"][key] / own["movement"][key],
    }


def measured(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the best rate and loss of each policy in the sweep, and the factor between its curve and LoRA's.

    The factor `same loss` is the geometric mean, over the policy's rates up to the best, of the rate divided by LoRA's
    rate with the same loss, interpolated in the logarithm. Above 1, the policy needs larger rates than LoRA.
    """
    policies = dict.fromkeys(run["policy"] for run in runs)
    curves = {p: sorted((run["query"], run["held_out"]) for run in runs if run["policy"] == p) for p in policies}
    lora = curves["lora"]
    falling = lora[: 1 + min(range(len(lora)), key=lambda i: lora[i][1])]
    found = {}
    for policy, curve in curves.items():
        best = min(curve, key=lambda point: point[1])
        logs = [math.log(rate / same) for rate, loss in curve if rate <= best[0] and (same := _rate_at(falling, loss))]
        found[policy] = {"best rate": best[0], "loss": best[1], "same loss": math.exp(sum(logs) / len(logs))}
    return found


def _rate_at(falling: list[tuple[float, float]], loss: float) -> float | None:
    """Return the rate at which a curve that falls with the rate reaches a loss, or None beyond its ends."""
    for (rate, high), (next_rate, low) in pairwise(falling):
        if low <= loss <= high:
            return math.exp(math.log(rate) + (high - loss) / (high - low) * math.log(next_rate / rate))
    return None


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (OUT / f"{name}.jsonl").read_text().splitlines()]


def summary() -> None:
    """Compare the rules with the sweeps, and write the results."""
    curvatures, runs = _lines("curvature"), _lines("sweep")
    tasks = {}
    for task in dict.fromkeys(found["task"] for found in curvatures):
        by_policy: dict[str, dict[str, Any]] = {}
        for found in curvatures:
            if found["task"] == task:
                by_policy.setdefault(found["policy"], {}).update(found)
        ratios = {
            policy: {key: predicted(found, by_policy["lora"], key) for key in ("query", "value", ALL)}
            for policy, found in by_policy.items()
        }
        swept = [run for run in runs if run["task"] == task and run["query"] == run["value"]]
        tasks[task] = {"multiples of LoRA's rate": ratios, "measured": measured(swept) if swept else None}
    figures = {"rank": RANK, "steps": STEPS, "tasks": tasks, "curvatures": curvatures, "runs": runs}
    print(json.dumps(tasks, indent=1))
    print("written to", write_results("learning_rate_curvature", figures))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    options.add_argument("--summary", action="store_true")
    torch.set_num_threads(1)
    arguments = options.parse_args()
    if arguments.summary:
        summary()
    else:
        curvature(arguments)


if __name__ == "__main__":
    main()
