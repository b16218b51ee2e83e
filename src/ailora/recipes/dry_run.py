"""Dry runs: read the data, plan the adapter and estimate the cost of a run, without loading a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ailora.errors import InputError
from ailora.model_loading import load_on_meta
from ailora.plan import Plan
from ailora.recipes.config.method import CustomFunction, FullFineTuning, Method, PeftInit
from ailora.recipes.config.schema import LanguageConfig, RunConfig
from ailora.recipes.data.tokenize_language import IGNORE_INDEX
from ailora.recipes.registry import make_recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.setup import plan_adapter
from ailora.spectral.flops import measure_matmul_speed

#: Activations that a layer keeps per token and hidden unit for the backward pass, attention scores aside: 34 bytes in
#: 2-byte numbers (Korthikanti et al. 2022, arXiv 2205.05198); with checkpointing, the layer's input alone.
_ACTIVATIONS_PER_UNIT, _CHECKPOINTED_ACTIVATIONS_PER_UNIT = 17, 1


@dataclass(frozen=True)
class DryRun:
    """Plan, estimated cost and examples of a run.

    Attributes:
        plan: plan of the adapter; None for full fine-tuning.
        facts: counts and estimates by name; memory in bytes, time in seconds.
        examples: first two rows of the training data, as text with marks around trained tokens.
    """

    plan: Plan | None
    facts: dict[str, Any]
    examples: list[str]


def dry_run(config: RunConfig) -> DryRun:
    """Validate a configuration, its data and its plan, and estimate the cost of training.

    Args:
        config: configuration of the run.

    Returns:
        Plan, estimates and examples.

    Raises:
        InputError: The data are invalid, or the method is a function of the user, whose adapter is unknown.
        ModelError: The model cannot be adapted as configured.
    """
    method = config.adapter.method
    if isinstance(method, CustomFunction):
        raise InputError(f"a dry run cannot say what the function {method} makes of a model: run it")
    recipe = make_recipe(config)
    RunFolder(config.output).validate_claimable(config)
    recipe.prepare()
    model = load_on_meta(config.model, config.task_type, num_labels=recipe.num_labels)
    plan = None if isinstance(method, FullFineTuning) else plan_adapter(config, model)
    data, tokenizer = recipe.datasets, recipe.tokenizer
    train = data["train"]
    examples = [_format_example(train[i], tokenizer) for i in range(min(2, len(train)))]
    rows = {f"{split}_rows": len(dataset) for split, dataset in data.items()}
    return DryRun(plan, rows | _estimate_costs(config, recipe.arguments, model, plan=plan, train=train), examples)


def _estimate_costs(
    config: RunConfig, arguments: TrainingArguments, model: PreTrainedModel, *, plan: Plan | None, train: Dataset
) -> dict[str, Any]:
    lengths = [len(ids) for ids in train["input_ids"]]
    batch = arguments.per_device_train_batch_size * max(1, arguments.world_size)
    per_step = batch * arguments.gradient_accumulation_steps
    epochs = arguments.num_train_epochs
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(math.ceil(len(lengths) / per_step) * epochs)
    whole = sum(parameter.numel() for parameter in model.parameters())
    method = config.adapter.method
    trained = whole if plan is None else _trainable_parameters(method, plan)
    token_count = sum(lengths) / len(lengths) * per_step * steps
    checkpointed = bool(arguments.activation_checkpointing)
    # Operations per parameter and token: 2 forwards, 2 for gradients of inputs, 2 for those of trained weights.
    passes = 2 + 2 + 2 * (plan is None) + 2 * checkpointed
    longest = max(lengths) * arguments.per_device_train_batch_size
    text: Any = model.config.get_text_config()
    activations = _CHECKPOINTED_ACTIVATIONS_PER_UNIT if checkpointed else _ACTIVATIONS_PER_UNIT
    layers, width = getattr(text, "num_hidden_layers", 0), getattr(text, "hidden_size", 0)
    logits = longest * text.vocab_size * 4 * 2 if isinstance(config, LanguageConfig) else 0
    weights = sum(p.numel() * _bytes_per_entry(config, p.dtype.itemsize, p.ndim) for p in model.parameters())
    # Values, gradients and Adam's two moments in float32 are 16 bytes; the anchor has another 4.
    state = trained * 16 + (plan.trainable * 4 if plan and not isinstance(method, PeftInit) else 0)
    return {
        "steps": steps,
        "tokens_per_row": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
        "trainable_parameters": trained,
        "total_parameters": whole + (0 if plan is None else plan.trainable),
        "memory_bytes": int(weights + state + longest * layers * width * activations * 4 + logits),
        "weight_bytes": int(weights),
        "optimizer_bytes": int(state),
        "train_seconds": passes * whole * token_count / measure_matmul_speed(arguments.device),
    }


def _trainable_parameters(method: Method, plan: Plan) -> int:
    """Count the parameters that the adapters of a plan train, heads aside."""
    if isinstance(method, PeftInit) and method.freezes_B:
        return sum(planned.rank * planned.projection.in_features for planned in plan.adapters)
    return plan.trainable


def _bytes_per_entry(config: RunConfig, stored: int, dimensions: int) -> float:
    """Return the bytes of an entry of a weight; quantization applies to matrices."""
    fields = config.quantization or {}
    if dimensions < 2 or not fields:
        return stored
    return 0.5 if fields.get("load_in_4bit") or "Int4" in str(fields.get("torchao")) else 1


def _format_example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Format a tokenized row as text, with `[[ ]]` around trained tokens, or with its label."""
    ids, labels = row["input_ids"], row["labels"]
    if not isinstance(labels, list):
        return f"{tokenizer.decode(ids)}  ->  {labels}"
    if len(labels) != len(ids):
        return f"{tokenizer.decode(ids)}  ->  [[{tokenizer.decode(labels)}]]"
    text = ""
    for start, stop in _find_runs([label != IGNORE_INDEX for label in labels]):
        part = str(tokenizer.decode(ids[start:stop]))
        text += part if labels[start] == IGNORE_INDEX else f"[[{part}]]"
    return text


def _find_runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Find the ranges of equal flags."""
    edges = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return list(pairwise(edges))
