"""Model card of a trained adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ailora.formatting import format_number
from ailora.model_path import resolve_model
from ailora.plan.task_type import TASKS
from ailora.recipes.config.method import CustomFunction, PeftInit
from ailora.recipes.config.schema import AdapterConfig, RunConfig

_CARD = """---
{data}
---

# {policy} adapter{rank} for {base}

{kind} for {task}. {origin} The file is a stock PEFT adapter for the unchanged base model.

{scores}

Trainable parameters: {trainable:,}, including heads. Steps: {steps}. Seed: {seed}.

```python
from peft import {loader}

model = {loader}.from_pretrained({arguments})
```
"""
#: Largest number of labels that the code of a card names; the text below the code names all labels.
_MAX_NAMED_LABELS = 20
#: Note for inits that overwrite base weights.
_CONVERSION_NOTE = (
    " This init subtracts a part of the base weights. The file was converted for the unchanged base weights, which "
    "doubles the rank. If the base is not stored in float32, a rounding error remains."
)


def make_model_card(config: RunConfig, result: Mapping[str, Any], *, pad_token_id: int | None) -> ModelCard:
    """Build the model card of an adapter, with its init, its scores, and code to load the adapter.

    Args:
        config: Configuration of the run.
        result: Content of `result.json`.
        pad_token_id: Id of the padding token in training; None if the model has no padding token.

    Returns:
        The model card.
    """
    policy = config.adapter.policy
    if not isinstance(policy, str):
        policy = "custom: " + ", ".join(f"{role} {init}" for role, init in policy.items())
    is_function = isinstance(config.adapter.method, CustomFunction)
    base = resolve_model(config.model) if config.model.startswith("builtin:") else config.model
    task = TASKS[config.task_type]
    data = ModelCardData(base_model=base, library_name="peft", tags=_choose_tags(config.adapter))
    card = _CARD.format(
        data=data.to_yaml(),
        base=base,
        policy=policy,
        rank="" if is_function else f", rank {config.adapter.rank},",
        kind="An adapter" if is_function else "A LoRA adapter",
        origin=_describe_origin(config.adapter, policy),
        task=task.title,
        scores=_format_scores(result["metrics"]),
        trainable=result["trainable_parameters"],
        steps=result["steps"],
        seed=result["seed"],
        loader=task.auto_class.replace("Auto", "AutoPeft"),
        arguments=_format_loader_arguments(result, pad_token_id),
    )
    if "labels" in result:
        names = ", ".join(result["labels"] or ["one number (regression)"])
        card += f"\nLabels, in the order of the model's outputs: {names}.\n"
        card += f"\nPadding token: {pad_token_id}.\n" if pad_token_id is not None else ""
    return ModelCard(card)


def _format_loader_arguments(result: Mapping[str, Any], pad_token_id: int | None) -> str:
    """Format the arguments of `from_pretrained`; classifiers need their number of labels and their padding token."""
    path = '"PATH/TO/THIS/FOLDER"'
    if "labels" not in result:
        return path
    names = list(result["labels"] or [])
    arguments = [path, f"num_labels={len(names) or 1}"]
    if 0 < len(names) <= _MAX_NAMED_LABELS:
        ids = {name: i for i, name in enumerate(names)}
        arguments += [f"id2label={dict(enumerate(names))!r}", f"label2id={ids!r}"]
    if pad_token_id is not None:
        arguments.append(f"pad_token_id={pad_token_id}")
    return "".join(f"\n    {argument}," for argument in arguments) + "\n"


def _choose_tags(adapter: AdapterConfig) -> list[str]:
    match adapter.method:
        case CustomFunction():
            return ["peft"]
        case PeftInit():
            return ["lora"]
        case _:
            return ["ailora", "lora"]


def _describe_origin(adapter: AdapterConfig, policy: str) -> str:
    """Describe the init of an adapter in a sentence or two."""
    match adapter.method:
        case CustomFunction():
            return f"It was created by the function `{policy}`, which is not part of this folder."
        case PeftInit(name=name, overwrites_base=overwrites_base):
            text = f"It was initialized by PEFT's own `{name}` (`init_lora_weights`)."
            return text + (_CONVERSION_NOTE if overwrites_base else "")
        case _:
            return (
                f"It was initialized by the policy `{policy}` and trained in the {adapter.form} form of "
                "[AILoRA](https://arxiv.org/abs/2510.08034)."
            )


def _format_scores(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Format the scores of each split as a Markdown table."""
    names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    rows = [["split", *names], ["---"] * (1 + len(names))]
    for split, scores in metrics.items():
        rows.append([split, *(format_number(scores[name]) if name in scores else "" for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
