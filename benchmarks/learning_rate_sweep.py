"""Find the best learning rates of MiniLM and pico-llama for several policies, by short runs on the same batches.

    python benchmarks/learning_rate_sweep.py --task e2e --policies lora pissa ailora --rates 1e-3 3e-3 1e-2 3e-2 1e-1

Each run adds a line to `out/learning_rate_curvature/sweep.jsonl`. Runs with a line are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import ailora
from ailora.model_loading import resolve_model

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "learning_rate_curvature"
RANK, STEPS = 8, 60
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """Base model and its data, both reproducible.

    Attributes:
        make: Builds a new base model in fp32, with attention that can be differentiated twice.
        train: Batches in a fixed order. Curvatures are measured on the first batch.
        held_out: Batches that the runs of the sweep are evaluated on.
    """

    make: Callable[[], Any]
    train: list[Batch]
    held_out: list[Batch]


def e2e(arguments: argparse.Namespace) -> Task:
    """Return the task E2E for pico-llama: describe a restaurant. Only tokens of the completion count in the loss."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.lm)

    def batch(rows: Sequence[Sequence[str]]) -> Batch:
        pairs = [(tokenizer(f"{mr} =>")["input_ids"], tokenizer(f" {ref}")["input_ids"]) for mr, ref in rows]
        texts = [([*a, *b, tokenizer.eos_token_id], len(a)) for a, b in pairs]
        width = max(len(ids) for ids, _ in texts)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (text, prompt) in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            labels[row, prompt : len(text)] = ids[row, prompt : len(text)]
            mask[row, : len(text)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def make() -> Any:
        return AutoModelForCausalLM.from_pretrained(arguments.lm, attn_implementation="eager", dtype=torch.float32)

    folder = arguments.data / "e2e"
    train = [batch(rows) for rows in _drawn(_rows(folder / "trainset.csv", ",")[1:], 100, 16)]
    return Task(make, train, [batch(rows) for rows in _drawn(_rows(folder / "devset.csv", ",")[1:], 8, 16)])


def classification(arguments: argparse.Namespace, train: Path, held_out: Path) -> Task:
    """Return a task for MiniLM with a new head of two classes, from TSV files."""
    path = resolve_model("builtin:minilm")
    tokenizer = AutoTokenizer.from_pretrained(path)

    def batch(rows: Sequence[tuple[str, int]]) -> Batch:
        encoded = tokenizer([text for text, _ in rows], padding=True, truncation=True, max_length=64)
        return {name: torch.tensor(values) for name, values in encoded.items()} | {
            "labels": torch.tensor([label for _, label in rows])
        }

    def make() -> Any:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=2, attn_implementation="eager", dtype=torch.float32
        )

    return Task(
        make,
        [batch(rows) for rows in _drawn(_labelled(train), 100, 32)],
        [batch(rows) for rows in _drawn(_labelled(held_out), 16, 32)],
    )


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {
    "e2e": e2e,
    "cola": lambda a: classification(a, a.data / "cola/train.tsv", a.data / "cola/dev.tsv"),
    "sst2": lambda a: classification(a, a.data / "sst2/train.tsv", a.data / "sst2/dev.tsv"),
}


def _rows(file: Path, delimiter: str) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else 0))


def _labelled(file: Path) -> list[tuple[str, int]]:
    rows = _rows(file, "\t")
    return [(row[-1], int(row[1])) if len(row) == 4 else (row[0], int(row[1])) for row in rows if row[1].isdigit()]


def _drawn(rows: list[Any], batches: int, size: int) -> list[list[Any]]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [[rows[i] for i in order[start : start + size]] for start in range(0, batches * size, size)]


def adapted(task: Task, policy: str) -> Any:
    torch.manual_seed(1)
    return ailora.adapt(task.make(), policy, rank=RANK, roles=("query", "value"))


def train(task: Task, policy: str, rates: dict[str, float]) -> dict[str, Any]:
    """Train by AdamW with linear decay over `STEPS` batches. The head of a classifier is not trained."""
    model = adapted(task, policy).train()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if role in n], "lr": rate} for role, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    torch.manual_seed(2)
    losses = []
    started = time.perf_counter()
    for batch in task.train[:STEPS]:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        held_out = sum(model(**batch).loss.item() for batch in task.held_out) / len(task.held_out)
    return {"held_out": held_out, "last_train": sum(losses[-10:]) / 10, "seconds": time.perf_counter() - started}


def sweep(arguments: argparse.Namespace) -> None:
    """Train every policy at every rate, on the same batches."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "sweep.jsonl"
    file.touch()
    done = [json.loads(line) for line in file.read_text().splitlines()]
    task = TASKS[arguments.task](arguments)
    for rate in arguments.rates:
        for policy in arguments.policies:
            run = {"task": arguments.task, "policy": policy, "query": rate, "value": rate * arguments.value_ratio}
            if any(run.items() <= other.items() for other in done):
                continue
            rates = {"q_proj" if arguments.task == "e2e" else "query": run["query"]}
            rates |= {"v_proj" if arguments.task == "e2e" else "value": run["value"]}
            line = json.dumps(run | train(task, policy, rates))
            with file.open("a") as lines:
                lines.write(line + "\n")
            print(line, flush=True)


def parser(about: str | None) -> argparse.ArgumentParser:
    """Build the parser of the options that sweeps and curvatures share."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    made.add_argument("--lm", default=str(ROOT.parent / "shared" / "lm" / "pico-llama"))
    made.add_argument("--task", choices=TASKS, default="e2e")
    made.add_argument("--policies", nargs="+", default=["lora", "pissa", "ailora"])
    return made


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
    options.add_argument("--value-ratio", type=float, default=1.0, help="rate of value divided by the rate of query")
    torch.set_num_threads(1)
    sweep(options.parse_args())


if __name__ == "__main__":
    main()
