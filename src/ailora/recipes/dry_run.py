"""Dry runs: validate the data, plan the adapter and estimate the cost of a run, without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ailora.checkpoints.modules_to_save import count_saved_parameters
from ailora.errors import InputError
from ailora.plan import Plan
from ailora.recipes.config.method import CustomFunction, FullFineTuning, Method, PeftInit
from ailora.recipes.config.schema import CausalLMConfig, LanguageConfig, RunConfig
from ailora.recipes.data.tokenize_language import IGNORE_INDEX
from ailora.recipes.position_limits import count_tokens
from ailora.recipes.registry import make_recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.results import read_resident_memory
from ailora.recipes.training.setup import count_trainable_parameters, plan_adapter
from ailora.recipes.training.step_counts import count_steps, rows_per_step
from ailora.spectral.flops import measure_matmul_speed

#: Number of activations kept for the backward pass, per layer, token and hidden unit, without attention scores.
#: Korthikanti et al. 2022 (arXiv 2205.05198) count 17, with dropout masks as bytes and without temporary tensors; peaks
#: measured with BERT and MiniLM correspond to 24. With activation checkpointing, only the input of each layer is kept.
_ACTIVATIONS_PER_UNIT, _CHECKPOINTED_ACTIVATIONS_PER_UNIT = 24, 1
#: Number of activations kept per attention score: the softmax, the dropout mask, and their product.
_ACTIVATIONS_PER_SCORE = 3
#: Number of copies of the logits in evaluation and in training. In causal training, TRL computes only a few rows of
#: logits at a time.
_EVAL_LOGITS_COPIES, _TRAIN_LOGITS_COPIES = 2, 3


@dataclass(frozen=True)
class DryRun:
    """Plan, estimated cost and examples of a run.

    Attributes:
        plan: Adapter plan; None for full fine-tuning.
        facts: Counts and estimates by name; memory in bytes, time in seconds.
        examples: First two rows of the training data as text, with marks around the tokens in the loss.
    """

    plan: Plan | None
    facts: dict[str, Any]
    examples: list[str]


def dry_run(config: RunConfig) -> DryRun:
    """Validate a configuration, its data and its plan, and estimate the cost of training.

    Args:
        config: Configuration of the run.

    Returns:
        Plan, estimates and examples.

    Raises:
        InputError: The data are invalid, a run cannot use the output folder, or the method is a user's function, whose
            adapter cannot be planned.
        ModelError: The model cannot be adapted as configured.
    """
    method = config.adapter.method
    if isinstance(method, CustomFunction):
        raise InputError(f"a dry run cannot plan adapter.policy {method}: only a run calls the function")
    recipe = make_recipe(config)
    RunFolder(config.output).validate_claimable(config)
    recipe.prepare()
    model = recipe.meta_model
    plan = None if isinstance(method, FullFineTuning) else plan_adapter(config, model)
    datasets, tokenizer = recipe.datasets, recipe.tokenizer
    train = datasets["train"]
    has_encoder = bool(getattr(model.config, "is_encoder_decoder", False))
    examples = [_format_example(train[i], tokenizer, has_encoder=has_encoder) for i in range(min(2, len(train)))]
    row_counts = {f"{split}_rows": len(dataset) for split, dataset in datasets.items()}
    lengths, packed_lengths = count_tokens(train), count_tokens(recipe.pack(train))
    costs = _estimate_costs(config, recipe.arguments, model, plan=plan, lengths=lengths, packed_lengths=packed_lengths)
    return DryRun(plan, row_counts | costs, examples)


def _estimate_costs(
    config: RunConfig,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    *,
    plan: Plan | None,
    lengths: list[int],
    packed_lengths: list[int],
) -> dict[str, Any]:
    """Estimate the cost of training.

    Args:
        config: Configuration of the run.
        arguments: Arguments of the Trainer.
        model: Base model on the meta device.
        plan: Adapter plan; None for full fine-tuning.
        lengths: Number of tokens of each training row.
        packed_lengths: Number of tokens of each packed row; without packing, equal to `lengths`.

    Returns:
        Counts and estimates by name; see `DryRun.facts`.
    """
    steps = count_steps(arguments, len(packed_lengths))
    total = sum(parameter.numel() for parameter in model.parameters())
    method = config.adapter.method
    added, trained = (0, total) if plan is None else _count_added_parameters(method, plan, model)
    token_count = sum(packed_lengths) / len(packed_lengths) * rows_per_step(arguments) * steps
    # Per token: 2 FLOPs each for the forward pass, the gradients of inputs, the gradients of weights (negligible for an
    # adapter), and the recomputation of activations.
    flops_per_parameter = 2 + 2 + 2 * (plan is None) + 2 * bool(arguments.activation_checkpointing)
    weight_bytes = sum(p.numel() * _bytes_per_entry(config, p.dtype.itemsize, p.ndim) for p in model.parameters())
    # In float32, a parameter with its gradient and Adam's two moments takes 16 bytes; an entry of the anchor takes 4.
    # PEFT's own inits keep no anchor in memory.
    anchor_entries = plan.anchor_entries if plan and not isinstance(method, PeftInit) else 0
    optimizer_bytes = trained * 16 + anchor_entries * 4
    activation_bytes = _estimate_activation_bytes(config, arguments, model, max(packed_lengths))
    # On a CPU, runs report the memory of the process; on a GPU, the memory allocated by torch.
    process_bytes = 0 if torch.cuda.is_available() else read_resident_memory()
    return {
        "steps": steps,
        "tokens_per_row": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
        "trainable_parameters": trained,
        "total_parameters": total + added,
        "memory_bytes": int(weight_bytes + optimizer_bytes + activation_bytes + process_bytes),
        "weight_bytes": int(weight_bytes),
        "optimizer_bytes": int(optimizer_bytes),
        "activation_bytes": int(activation_bytes),
        "process_bytes": process_bytes,
        "train_seconds": flops_per_parameter * total * token_count / measure_matmul_speed(arguments.device),
    }


def _estimate_activation_bytes(
    config: RunConfig, arguments: TrainingArguments, model: PreTrainedModel, longest: int
) -> float:
    """Estimate the bytes of float32 activations for a batch of rows with `longest` tokens.

    Returns:
        The larger of the estimates for a training batch and for an evaluation batch.
    """
    text_config: Any = model.config.get_text_config()
    layers, width = getattr(text_config, "num_hidden_layers", 0), getattr(text_config, "hidden_size", 0)
    heads = getattr(text_config, "num_attention_heads", 0)
    train_rows, eval_rows = arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size
    per_unit = _CHECKPOINTED_ACTIVATIONS_PER_UNIT if arguments.activation_checkpointing else _ACTIVATIONS_PER_UNIT
    # Only attention with dropout keeps its scores; without dropout, the backward pass recomputes the scores.
    keeps_scores = _has_attention_dropout(text_config) and not arguments.activation_checkpointing
    scores_per_token = _ACTIVATIONS_PER_SCORE * heads * longest if keeps_scores else 0
    # Entries of a single row.
    train_entries = longest * layers * (width * per_unit + scores_per_token)
    # Without gradients, only the activations of a single layer exist at a time.
    eval_entries = longest * (width * _ACTIVATIONS_PER_UNIT + _ACTIVATIONS_PER_SCORE * heads * longest)
    if isinstance(config, LanguageConfig):
        eval_entries += longest * text_config.vocab_size * _EVAL_LOGITS_COPIES
        copies = 0 if isinstance(config, CausalLMConfig) else _TRAIN_LOGITS_COPIES
        train_entries += longest * text_config.vocab_size * copies
    return 4 * max(train_rows * train_entries, eval_rows * eval_entries)


def _has_attention_dropout(text_config: object) -> bool:
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return any(getattr(text_config, name, 0) or 0 for name in names)


def _count_added_parameters(method: Method, plan: Plan, model: PreTrainedModel) -> tuple[int, int]:
    """Count the parameters of an adapter, including copies of heads and of `modules_to_save`.

    Returns:
        The number of all parameters, and the number of trainable parameters.
    """
    saved = count_saved_parameters(model, plan.options)
    return plan.trainable + saved, count_trainable_parameters(method, plan) + saved


def _bytes_per_entry(config: RunConfig, stored_bytes: int, dimensions: int) -> float:
    """Return the bytes per entry of a weight; quantization applies to matrices only."""
    quantization = config.quantization or {}
    if dimensions < 2 or not quantization:
        return stored_bytes
    return 0.5 if quantization.get("load_in_4bit") or "Int4" in str(quantization.get("torchao")) else 1


def _format_example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, has_encoder: bool) -> str:
    """Format a tokenized row as text, with `[[ ]]` around tokens in the loss, or with the row's label.

    Args:
        row: Columns `input_ids` and `labels` of the row.
        tokenizer: Tokenizer of the model.
        has_encoder: Whether the model is an encoder-decoder, whose `labels` are the tokens of a separate text.

    Returns:
        The formatted row.
    """
    ids, labels = row["input_ids"], row["labels"]
    if not isinstance(labels, list):
        return f"{tokenizer.decode(ids)}  ->  {labels}"
    if has_encoder:
        return f"{tokenizer.decode(ids)}  ->  [[{tokenizer.decode(labels)}]]"
    text = ""
    for start, stop in _find_equal_ranges([label != IGNORE_INDEX for label in labels]):
        part = str(tokenizer.decode(ids[start:stop]))
        text += part if labels[start] == IGNORE_INDEX else f"[[{part}]]"
    return text


def _find_equal_ranges(flags: list[bool]) -> list[tuple[int, int]]:
    """Find the ranges (start, stop) of consecutive equal flags."""
    edges = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return list(pairwise(edges))
