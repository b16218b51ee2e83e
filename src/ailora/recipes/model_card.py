"""The model card of an adapter that a run made."""

from __future__ import annotations

from typing import Any

from ailora.formatting import format_number
from ailora.model_loading import resolve_model
from ailora.plan.task_type import TASKS
from ailora.recipes.config.method import CustomFunction, PeftInit
from ailora.recipes.config.schema import AdapterConfig, RunConfig

_CARD = """---
library_name: peft
base_model: {base}
tags: [{tags}]
---

# {policy} adapter{rank} for {base}

{kind} for {task}. {origin} The file is a stock PEFT adapter for the unchanged base model.

| split | {columns} |
|---|{rule}|
{rows}

Trained numbers: {trainable:,}, heads included. Steps: {steps}. Seed: {seed}.

```python
from peft import {loader}

model = {loader}.from_pretrained("PATH/TO/THIS/FOLDER"{arguments})
```
"""

_GIVEN_BACK = (
    " That takes a part out of the base weights; here it is given back, for which the file has twice the rank. "
    "Where the base is not in float32, what rounding changed of it stays behind."
)


def model_card(config: RunConfig, result: dict[str, Any]) -> str:
    """A README for the adapter's folder: what it is, how good it is, how to load it."""
    given = config.adapter.policy
    policy = given if isinstance(given, str) else "custom: " + ", ".join(f"{r} {i}" for r, i in given.items())
    custom = isinstance(config.adapter.method, CustomFunction)
    metrics: dict[str, dict[str, float]] = result["metrics"]
    columns = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    task = TASKS[config.task_type]
    card = _CARD.format(
        base=resolve_model(config.model) if config.model.startswith("builtin:") else config.model,
        policy=policy,
        tags=_tags(config.adapter),
        rank="" if custom else f", rank {config.adapter.rank},",
        kind="An adapter" if custom else "A LoRA adapter",
        origin=_origin(config.adapter, policy),
        task=task.title,
        columns=" | ".join(columns),
        rule="---|" * len(columns),
        rows="\n".join(_row(split, [scores.get(name) for name in columns]) for split, scores in metrics.items()),
        trainable=result["trainable_parameters"],
        steps=result["steps"],
        seed=result["seed"],
        loader=task.auto_class.replace("Auto", "AutoPeft"),
        arguments=f", num_labels={len(result['labels'] or [0])}" if "labels" in result else "",
    )
    return card + _labels(result["labels"]) if "labels" in result else card


def _tags(adapter: AdapterConfig) -> str:
    match adapter.method:
        case CustomFunction():
            return "peft"
        case PeftInit():
            return "lora"
        case _:
            return "ailora, lora"


def _origin(adapter: AdapterConfig, policy: str) -> str:
    """How the adapter came to be, in a sentence or two."""
    match adapter.method:
        case CustomFunction():
            return f"It was made by the function `{policy}`, which is not part of this folder."
        case PeftInit(name=name, overwrites_base=overwrites_base):
            text = f"It was initialised by PEFT's own `{name}` (`init_lora_weights`)."
            return text + (_GIVEN_BACK if overwrites_base else "")
        case _:
            return (
                f"It was initialised by the policy `{policy}` and trained in the {adapter.form} form of "
                "[AILoRA](https://arxiv.org/abs/2510.08034)."
            )


def _row(split: str, scores: list[float | None]) -> str:
    return f"| {split} | " + " | ".join("" if value is None else format_number(value) for value in scores) + " |"


def _labels(names: list[str] | None) -> str:
    return (
        f"\nLabels, in the order of the model's outputs: {', '.join(names) if names else 'one number (regression)'}.\n"
    )
