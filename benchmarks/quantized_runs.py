"""Quantize MiniLM in four ways, train an adapter on CoLA, and reload it on the quantized and on the full base.

    python benchmarks/quantized_runs.py [--data ../shared/data/cola] [--steps 100]

All runs have the same head, batches and rate. Writes `benchmarks/results/quantized_runs.json`.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from machine import write_results
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ailora
from ailora.model_loading import resolve_model
from ailora.recipes.config.schema import DataConfig
from ailora.recipes.data.classification_rows import load_examples
from ailora.recipes.data.tokenize_pairs import tokenize
from ailora.recipes.evaluation.classification_metrics import compute_metrics
from ailora.recipes.task_models import load_tokenizer
from ailora.weights.base_weight import BaseWeight
from ailora.weights.weight_source import relative_error

ROOT = Path(__file__).resolve().parents[1]
RANK, BATCH, RATE, SEED = 8, 32, 6e-3, 0


def quantizations() -> dict[str, Callable[[], Any]]:
    """Return functions that build transformers' configurations, by name. The head, which is new, is not quantized."""
    from torchao.quantization import Int8WeightOnlyConfig

    head = ["classifier"]
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": head}
    return {
        "none": lambda: None,
        "bitsandbytes int8": lambda: tf.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=head),
        "bitsandbytes nf4": lambda: tf.BitsAndBytesConfig(**nf4),
        "bitsandbytes nf4, double": lambda: tf.BitsAndBytesConfig(**nf4, bnb_4bit_use_double_quant=True),
        "torchao int8": lambda: tf.TorchAoConfig(quant_type=Int8WeightOnlyConfig(), modules_to_not_convert=head),
    }


def load(config: Any = None) -> nn.Module:
    """Load MiniLM with a head drawn from the seed."""
    torch.manual_seed(SEED)
    options = {"quantization_config": config} if config else {}
    return tf.AutoModelForSequenceClassification.from_pretrained(
        resolve_model("builtin:minilm"), num_labels=2, dtype=torch.float32, **options
    )


class Cola:
    """CoLA in batches: the training set in a fixed random order, and the whole validation set."""

    def __init__(self, folder: Path) -> None:
        columns = {"columns": ["source", "label", "mark", "sentence"], "text": ["sentence"]}
        files = {"train": str(folder / "train.tsv"), "validation": str(folder / "val.tsv")}
        config = DataConfig(**files, **columns)
        tokenizer = load_tokenizer("builtin:minilm")
        self.rows = {}
        for split in files:
            examples = load_examples(config, split)
            made = tokenize(examples, tokenizer, 128)
            self.rows[split] = made.add_column("labels", [int(label) for label in examples.labels or []])
        self.collate = tf.DataCollatorWithPadding(tokenizer)

    def batches(self, split: str, *, shuffle: bool) -> Iterator[dict[str, Tensor]]:
        order = torch.Generator().manual_seed(SEED)
        return iter(DataLoader(self.rows[split], BATCH, shuffle=shuffle, collate_fn=self.collate, generator=order))

    def score(self, model: nn.Module) -> dict[str, Any]:
        """Return loss and Matthews correlation on the validation set, and the logits."""
        model.eval()
        with torch.no_grad():
            pairs = [(model(**batch).logits, batch["labels"]) for batch in self.batches("validation", shuffle=False)]
        logits, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        metrics = compute_metrics(("matthews_correlation",), labels.numpy(), logits.argmax(-1).numpy(), classes=2)
        return {"loss": float(nn.functional.cross_entropy(logits, labels)), **metrics, "logits": logits}


def train(model: nn.Module, data: Cola, steps: int) -> dict[str, Any]:
    """Train by AdamW with linear decay, and return losses and the median seconds of a step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    schedule = tf.get_linear_schedule_with_warmup(optimizer, 0, steps)
    model.train()
    losses, seconds = [], []
    for _, batch in zip(range(steps), data.batches("train", shuffle=True), strict=False):
        started = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss))
    mean = statistics.mean
    return {"first_losses": mean(losses[:10]), "last_losses": mean(losses[-10:]), "step": statistics.median(seconds)}


def one_run(name: str, config: Callable[[], Any], data: Cola, steps: int) -> dict[str, Any]:
    """Adapt and train a quantized model, and reload the adapter on the quantized and on the full base."""
    base = load(config())
    full = load()
    modules = {p.module for p in ailora.find_projections(base) if p.role in ("query", "value")}
    errors = [
        relative_error(full.get_submodule(m).weight, BaseWeight.from_model(base, m).read()) for m in sorted(modules)
    ]
    start = data.score(base)
    model = ailora.adapt(base, rank=RANK)
    adapted_start = data.score(model)
    made = {"quantization": name, "weight_error": statistics.mean(errors)}
    made["exact_start"] = torch.equal(adapted_start["logits"], start["logits"])
    made |= train(model, data, steps)
    trained = data.score(model)
    with tempfile.TemporaryDirectory() as folder:
        ailora.save_adapter(model, folder)
        again = data.score(PeftModel.from_pretrained(load(config()), folder))
        on_full = data.score(PeftModel.from_pretrained(load(), folder))
    with model.disable_adapter():
        disabled = data.score(model)
    made["base_unchanged"] = torch.equal(disabled["logits"], start["logits"])
    for key, scores in {"start": start, "trained": trained, "reloaded": again, "on_full_base": on_full}.items():
        made[key] = {k: v for k, v in scores.items() if k != "logits"}
    spread = trained["logits"].std()
    made["reload_difference"] = float((again["logits"] - trained["logits"]).abs().max())
    made["full_base_difference"] = float((on_full["logits"] - trained["logits"]).pow(2).mean().sqrt() / spread)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cola")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    tf.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    data = Cola(arguments.data)
    runs = []
    for name, config in quantizations().items():
        made = one_run(name, config, data, arguments.steps)
        runs.append(made)
        print(made, flush=True)
    settings = {"rank": RANK, "batch": BATCH, "rate": RATE, "seed": SEED, "steps": arguments.steps}
    print(write_results("quantized_runs", {"settings": settings, "runs": runs}))


if __name__ == "__main__":
    main()
