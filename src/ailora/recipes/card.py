"""The model card of an adapter that a run made."""

from __future__ import annotations

from typing import Any

from ailora.checkpoints.models import model_path
from ailora.recipes.schema import ClassificationConfig

_CARD = """---
library_name: peft
base_model: {base}
tags: [ailora, lora]
---

# {policy} adapter, rank {rank}, for {base}

A LoRA adapter for sequence classification. It was initialised by the policy `{policy}` and trained in the {form} form
of [AILoRA](https://arxiv.org/abs/2510.08034). The file is a stock PEFT adapter for the unchanged base model.

| split | {columns} |
|---|{rule}|
{rows}

Trained numbers: {trainable:,}, the head included. Steps: {steps}. Seed: {seed}.

```python
from peft import AutoPeftModelForSequenceClassification

model = AutoPeftModelForSequenceClassification.from_pretrained("PATH/TO/THIS/FOLDER", num_labels={num_labels})
```

Labels, in the order of the model's outputs: {labels}.
"""


def model_card(config: ClassificationConfig, result: dict[str, Any]) -> str:
    """A README for the adapter's folder: what it is, how good it is, how to load it."""
    policy = config.adapter.policy
    metrics: dict[str, dict[str, float]] = result["metrics"]
    columns = list(next(iter(metrics.values())))
    return _CARD.format(
        base=model_path(config.model) if config.model.startswith("builtin:") else config.model,
        policy=policy if isinstance(policy, str) else "custom: " + ", ".join(f"{r} {i}" for r, i in policy.items()),
        rank=config.adapter.rank,
        form=config.adapter.form,
        columns=" | ".join(columns),
        rule="---|" * len(columns),
        rows="\n".join(f"| {s} | " + " | ".join(f"{v:.4f}" for v in m.values()) + " |" for s, m in metrics.items()),
        trainable=result["trainable_parameters"],
        steps=result["steps"],
        seed=result["seed"],
        num_labels=len(result["labels"] or [0]),
        labels=", ".join(result["labels"]) if result["labels"] else "one number (regression)",
    )
