"""Dry runs: read the data, plan the adapter and estimate the cost of a run, without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ailora.checkpoints.modules_to_save import count_saved_parameters
from ailora.errors import InputError
from ailora.plan import Plan
from ailora.recipes.config.method import CustomFunction, FullFineTuning, Method, PeftInit
from ailora.recipes.config.schema import CausalLMConfig, LanguageConfig, RunConfig
from ailora.recipes.data.tokenize_language import IGNORE_INDEX
from ailora.recipes.position_limits import lengths_of
from ailora.recipes.registry import make_recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.results import resident_memory
from ailora.recipes.training.setup import plan_adapter
from ailora.recipes.training.step_counts import count_steps, rows_per_step
from ailora.spectral.flops import measure_matmul_speed

#: Activations that a layer keeps per token and hidden unit for the backward pass, attention scores aside; with
#: checkpointing, the layer's input alone. Korthikanti et al. 2022 (arXiv 2205.05198) count 17, with masks of dropout as
#: bytes and without temporaries: measured peaks of BERT and MiniLM correspond to 24.
_ACTIVATIONS_PER_UNIT, _CHECKPOINTED_ACTIVATIONS_PER_UNIT = 24, 1
#: Activations per attention score: the softmax, the mask of dropout, and their product.
_ACTIVATIONS_PER_SCORE = 3
#: Copies of the logits in an evaluation, and in training; TRL's loss of a causal model makes them a few rows at a time.
_EVALUATED_LOGITS, _TRAINED_LOGITS = 2, 3


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
    model = recipe.meta_model
    plan = None if isinstance(method, FullFineTuning) else plan_adapter(config, model)
    data, tokenizer = recipe.datasets, recipe.tokenizer
    train = data["train"]
    examples = [_format_example(train[i], tokenizer) for i in range(min(2, len(train)))]
    rows = {f"{split}_rows": len(dataset) for split, dataset in data.items()}
    return DryRun(plan, rows | _estimate_costs(config, recipe.arguments, model, plan=plan, train=train), examples)


def _estimate_costs(
    config: RunConfig, arguments: TrainingArguments, model: PreTrainedModel, *, plan: Plan | None, train: Dataset
) -> dict[str, Any]:
    lengths = lengths_of(train)
    steps = count_steps(arguments, len(lengths))
    whole = sum(parameter.numel() for parameter in model.parameters())
    method = config.adapter.method
    added, trained = (0, whole) if plan is None else _added_parameters(method, plan, model)
    token_count = sum(lengths) / len(lengths) * rows_per_step(arguments) * steps
    # Operations per parameter and token: 2 forwards, 2 for gradients of inputs, 2 for those of trained weights.
    passes = 2 + 2 + 2 * (plan is None) + 2 * bool(arguments.activation_checkpointing)
    weights = sum(p.numel() * _bytes_per_entry(config, p.dtype.itemsize, p.ndim) for p in model.parameters())
    # Values, gradients and Adam's two moments in float32 are 16 bytes; the anchor has another 4.
    state = trained * 16 + (plan.trainable * 4 if plan and not isinstance(method, PeftInit) else 0)
    activations = _activation_bytes(config, arguments, model, max(lengths))
    # What a run measures on a CPU is the whole process; on a GPU it is what torch holds there.
    process = 0 if torch.cuda.is_available() else resident_memory()
    return {
        "steps": steps,
        "tokens_per_row": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
        "trainable_parameters": trained,
        "total_parameters": whole + added,
        "memory_bytes": int(weights + state + activations + process),
        "weight_bytes": int(weights),
        "optimizer_bytes": int(state),
        "activation_bytes": int(activations),
        "process_bytes": process,
        "train_seconds": passes * whole * token_count / measure_matmul_speed(arguments.device),
    }


def _activation_bytes(config: RunConfig, arguments: TrainingArguments, model: PreTrainedModel, longest: int) -> float:
    """Estimate what the largest batch of training keeps for its backward pass, or that of an evaluation holds."""
    text: Any = model.config.get_text_config()
    layers, width = getattr(text, "num_hidden_layers", 0), getattr(text, "hidden_size", 0)
    heads = getattr(text, "num_attention_heads", 0)
    rows, evaluated = arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size
    kept = _CHECKPOINTED_ACTIVATIONS_PER_UNIT if arguments.activation_checkpointing else _ACTIVATIONS_PER_UNIT
    # Attention with dropout keeps its scores; without it they are computed anew.
    drops = _has_attention_dropout(text) and not arguments.activation_checkpointing
    scores = _ACTIVATIONS_PER_SCORE * heads * longest if drops else 0
    trained = longest * layers * (width * kept + scores)
    # Without gradients the tensors of one layer are there at a time.
    seen = longest * (width * _ACTIVATIONS_PER_UNIT + _ACTIVATIONS_PER_SCORE * heads * longest)
    if isinstance(config, LanguageConfig):
        seen += longest * text.vocab_size * _EVALUATED_LOGITS
        trained += longest * text.vocab_size * (0 if isinstance(config, CausalLMConfig) else _TRAINED_LOGITS)
    return 4 * max(rows * trained, evaluated * seen)


def _has_attention_dropout(text: object) -> bool:
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return any(getattr(text, name, 0) or 0 for name in names)


def _added_parameters(method: Method, plan: Plan, model: PreTrainedModel) -> tuple[int, int]:
    """Count the parameters that an adapter brings along, copies of heads and other modules among them.

    Returns:
        All of them, and those that train.
    """
    magnitudes = sum(group[0].projection.shape[0] for group in plan.modules.values()) if plan.options.dora else 0
    added = plan.trainable + magnitudes + count_saved_parameters(model, plan.options)
    freezes_B = isinstance(method, PeftInit) and method.freezes_B
    return added, added - (sum(a.rank * a.projection.out_features for a in plan.adapters) if freezes_B else 0)


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
