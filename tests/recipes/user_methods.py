"""Functions that a run names as its method, and what they saw."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

import ailora
from ailora.recipes.baselines.custom_function import MethodContext

NOT_CALLABLE = 3
#: What the last method of `looking` was told, the batches it was shown, and those that it was trained with.
SEEN: dict[str, Any] = {}


def looking(model: PreTrainedModel, context: MethodContext) -> Any:
    """Plain LoRA on queries; looks at the batches twice, and leaves the second look in the middle."""
    shown = list(context.batches)
    for batch in context.batches:
        assert torch.equal(batch["input_ids"], shown[0]["input_ids"])
        break
    SEEN.update(context=context, shown=shown, trained=[])

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            SEEN["trained"].append(kwargs)

    model.register_forward_pre_hook(keep, with_kwargs=True)
    return lora(model)


def lora(model: PreTrainedModel, **options: Any) -> Any:
    task = "SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM"
    config = LoraConfig(r=2, lora_alpha=4, target_modules=r".*(\.query|q_proj)", task_type=task, **options)
    return get_peft_model(model, config)


def plain(model: PreTrainedModel, context: MethodContext) -> Any:
    return lora(model)


def heads_alone(model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
    """The base frozen, but for biases."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


def ours(model: PreTrainedModel, context: MethodContext) -> Any:
    return ailora.adapt(model, {"query": "minor"}, rank=context.config.adapter.rank, task_type="SEQ_CLS")


def residual(model: PreTrainedModel, context: MethodContext) -> Any:
    """An init that takes its start, which is random, out of the base."""
    return _taken_out(lora(model), taken=1.0)


def half_taken_out(model: PreTrainedModel, context: MethodContext) -> Any:
    return _taken_out(lora(model), taken=0.5)


def other_embeddings(model: PreTrainedModel, context: MethodContext) -> Any:
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1
    return lora(model)


def _taken_out(adapted: Any, *, taken: float) -> Any:
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            holder: Any = layer
            with torch.no_grad():
                holder.lora_B["default"].weight.normal_()
                holder.base_layer.weight -= taken * holder.get_delta_weight("default")
    return adapted


def nothing(model: PreTrainedModel, context: MethodContext) -> None:
    pass


def frozen(model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
    return model.requires_grad_(False)


def other_name(model: PreTrainedModel, context: MethodContext) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["query"]), adapter_name="mine")  # type: ignore[arg-type]
