"""Modules that PEFT trains whole and looks for in an adapter's file: heads, and what the plan adds to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ailora.checkpoints.module_tasks import seed_of
from ailora.errors import ModelError
from ailora.plan.adapter_plan import LoraOptions
from ailora.plan.task_type import default_heads
from ailora.safetensors_io import Checkpoint, StoredTensor
from ailora.weights.checkpoint_keys import checkpoint_key_map

#: What PEFT's classes add to `modules_to_save`.
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def head_tensors(
    model: PreTrainedModel, options: LoraOptions, checkpoint: Checkpoint, seed: int
) -> dict[str, StoredTensor | Tensor]:
    """The tensors of all modules that are trained whole, by the name of the parameter in the model.

    Those of the checkpoint where it has them, unread; else fresh ones, drawn as transformers does for a new head.

    Args:
        model: the base model on the meta device.
        options: the plan's.
        checkpoint: the base model's.
        seed: of fresh heads, which are float32.

    Raises:
        ModelError: a module that is no new head is not in the checkpoint.
    """
    heads = (*_HEADS.get(options.task_type or "", ()), *default_heads(model, options.task_type))
    names = saved_modules(model, options)
    stored = {name: tensor for tensor, name in checkpoint_key_map(model, checkpoint.tensors).items()}
    for name, tied in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name not in stored and tied in stored:
            stored[name] = stored[tied]
    found: dict[str, StoredTensor | Tensor] = {}
    for module, part in model.named_modules():
        # PEFT's rule.
        if not any(module.endswith(name) for name in names):
            continue
        shapes = {f"{module}.{key}": tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        kept = {name for name, shape in shapes.items() if _fits(stored.get(name), shape, checkpoint)}
        if kept != shapes.keys() and not any(module.endswith(name) for name in heads):
            raise ModelError(f"modules_to_save: {sorted(shapes.keys() - kept)[0]} is not in the checkpoint as it is")
        fresh = {} if kept == shapes.keys() else _fresh(model, module, seed)
        found |= {name: checkpoint.tensors[stored[name]] if name in kept else fresh[name] for name in shapes}
    return found


def saved_modules(model: PreTrainedModel, options: LoraOptions) -> list[str]:
    """The names in `modules_to_save` when PEFT has wrapped the model for the task, in its order."""
    usual = _HEADS.get(options.task_type or "", ())
    return list(dict.fromkeys([*options.modules_to_save, *usual]))


def _fits(tensor: str | None, shape: tuple[int, ...], checkpoint: Checkpoint) -> bool:
    return tensor is not None and checkpoint.tensors[tensor].shape == shape


def _fresh(model: PreTrainedModel, module: str, seed: int) -> Mapping[str, Tensor]:
    """The state of a new module, whatever the state of the global generator, which is left as it is."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed_of(seed, module))
        made = copy.deepcopy(model.get_submodule(module)).to_empty(device="cpu")
        made.float().apply(model._init_weights)
    return {f"{module}.{key}": tensor for key, tensor in made.state_dict().items()}
