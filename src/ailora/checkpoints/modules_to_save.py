"""Modules that PEFT trains whole and looks for in an adapter's file: heads, and what the plan adds to them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ailora.checkpoints.module_tasks import derive_seed
from ailora.errors import ModelError
from ailora.plan.adapter_plan import LoraOptions
from ailora.plan.task_type import get_task
from ailora.safetensors_io import Checkpoint, StoredTensor
from ailora.weights.checkpoint_keys import checkpoint_key_map


def modules_to_save_names(options: LoraOptions) -> list[str]:
    """Return `modules_to_save` as it is when PEFT has wrapped the model for the task, in its order."""
    return list(dict.fromkeys([*options.modules_to_save, *get_task(options.task_type).peft_heads]))


def modules_to_save_tensors(
    model: PreTrainedModel, options: LoraOptions, checkpoint: Checkpoint, seed: int
) -> dict[str, StoredTensor | Tensor]:
    """Return the tensors of all modules that are trained whole, by the name of the parameter in the model.

    Those of the checkpoint where it has them, unread; else fresh ones, drawn as transformers does for a new head.

    Args:
        model: The base model on the meta device.
        options: The plan's.
        checkpoint: The base model's.
        seed: Seed of fresh heads, which are float32.

    Raises:
        ModelError: A module that is no new head is not in the checkpoint.
    """
    heads = get_task(options.task_type).heads
    stored = _stored_tensors(model, checkpoint)
    tensors: dict[str, StoredTensor | Tensor] = {}
    for module, part in model.named_modules():
        if not _matches(module, modules_to_save_names(options)):
            continue
        shapes = {f"{module}.{key}": tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        kept = {name: stored[name] for name, shape in shapes.items() if name in stored and stored[name].shape == shape}
        missing = sorted(shapes.keys() - kept.keys())
        if missing and not _matches(module, heads):
            raise ModelError(f"modules_to_save: {missing[0]} is not in the checkpoint as it is")
        fresh = _draw_fresh(model, module, seed) if missing else {}
        tensors |= {name: kept[name] if name in kept else fresh[name] for name in shapes}
    return tensors


def _matches(module: str, names: Iterable[str]) -> bool:
    """Return whether PEFT takes a module for one of these names: it looks at the ends."""
    return any(module.endswith(name) for name in names)


def _stored_tensors(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return the checkpoint's tensors by the names of the parameters, those of tied ones under both names."""
    stored = {name: checkpoint.tensors[key] for key, name in checkpoint_key_map(model, checkpoint.tensors).items()}
    for name, tied in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name not in stored and tied in stored:
            stored[name] = stored[tied]
    return stored


def _draw_fresh(model: PreTrainedModel, module: str, seed: int) -> Mapping[str, Tensor]:
    """Return the state of a new module; the global generator neither decides it nor is moved."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(seed, module))
        fresh = copy.deepcopy(model.get_submodule(module)).to_empty(device="cpu")
        fresh.float().apply(model._init_weights)
    return {f"{module}.{key}": tensor for key, tensor in fresh.state_dict().items()}
