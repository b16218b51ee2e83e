"""What a run would do, without loading a weight: its data read, its adapter planned, its cost estimated."""

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
from ailora.recipes.training.setup import plan_adapter
from ailora.spectral.flops import measure_matmul_speed

#: Floating numbers that a layer keeps per token and hidden unit for the backward pass, by Korthikanti et al. 2022
#: (arXiv 2205.05198, 34 bytes in 2-byte numbers), attention scores aside; with checkpointing only the layer's input.
_KEPT, _KEPT_CHECKPOINTED = 17, 1


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        plan: what every module gets; None: full fine-tuning.
        facts: figures by name; bytes and seconds are estimates.
        examples: the first two rows of the training data, as they are trained.
    """

    plan: Plan | None
    facts: dict[str, Any]
    examples: list[str]


def dry_run(config: RunConfig) -> DryRun:
    """Check everything that can be checked before a model is loaded, and estimate what training takes.

    Raises:
        InputError, ModelError: as the recipe's `run` would.
    """
    method = config.adapter.method
    if isinstance(method, CustomFunction):
        raise InputError(f"a dry run cannot say what the function {method} makes of a model: run it")
    recipe = make_recipe(config)
    recipe.prepare()
    model = load_on_meta(config.model, config.task_type, num_labels=recipe.num_labels)
    plan = None if isinstance(method, FullFineTuning) else plan_adapter(config, model)
    data, tokenizer = recipe.datasets, recipe.tokenizer
    train = data["train"]
    examples = [_shown(train[i], tokenizer) for i in range(min(2, len(train)))]
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
    # Two operations a number and token forwards, as many for the gradients of the inputs, and of weights that train.
    passes = 2 + 2 + 2 * (plan is None) + 2 * checkpointed
    longest = max(lengths) * arguments.per_device_train_batch_size
    text: Any = model.config.get_text_config()
    kept = _KEPT_CHECKPOINTED if checkpointed else _KEPT
    layers, width = getattr(text, "num_hidden_layers", 0), getattr(text, "hidden_size", 0)
    logits = longest * text.vocab_size * 4 * 2 if isinstance(config, LanguageConfig) else 0
    weights = sum(p.numel() * _bytes(config, p.dtype.itemsize, p.ndim) for p in model.parameters())
    # Value, gradient and Adam's two moments in fp32; the anchor beside them.
    state = trained * 16 + (plan.trainable * 4 if plan and not isinstance(method, PeftInit) else 0)
    return {
        "steps": steps,
        "tokens_per_row": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
        "trainable_parameters": trained,
        "total_parameters": whole + (0 if plan is None else plan.trainable),
        "memory_bytes": int(weights + state + longest * layers * width * kept * 4 + logits),
        "weight_bytes": int(weights),
        "optimizer_bytes": int(state),
        "train_seconds": passes * whole * token_count / measure_matmul_speed(arguments.device),
    }


def _trainable_parameters(method: Method, plan: Plan) -> int:
    """Count the parameters that the adapters of a plan train, heads aside."""
    if isinstance(method, PeftInit) and method.freezes_B:
        return sum(planned.rank * planned.projection.in_features for planned in plan.adapters)
    return plan.trainable


def _bytes(config: RunConfig, stored: int, dimensions: int) -> float:
    """Bytes of a number: quantization takes the matrices."""
    fields = config.quantization or {}
    if dimensions < 2 or not fields:
        return stored
    return 0.5 if fields.get("load_in_4bit") or "Int4" in str(fields.get("torchao")) else 1


def _shown(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A row's text with what the loss counts in double brackets; the label of a classified one."""
    ids, labels = row["input_ids"], row["labels"]
    if not isinstance(labels, list):
        return f"{tokenizer.decode(ids)}  ->  {labels}"
    if len(labels) != len(ids):
        return f"{tokenizer.decode(ids)}  ->  [[{tokenizer.decode(labels)}]]"
    text = ""
    for start, stop in _runs([label != IGNORE_INDEX for label in labels]):
        part = str(tokenizer.decode(ids[start:stop]))
        text += part if labels[start] == IGNORE_INDEX else f"[[{part}]]"
    return text


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Ranges of equal flags."""
    edges = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return list(pairwise(edges))
