"""Which tensor of a checkpoint is which parameter of a model, as transformers sees it when it loads one."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ailora.errors import ModelError
from ailora.weights.base_weight import tensors_by_name


def match_checkpoint_keys(
    model: nn.Module, modules: Iterable[str], stored: Iterable[str], *, by_name_only: bool = False
) -> dict[str, str]:
    """The tensor of a checkpoint that holds the weight of each module.

    transformers renames tensors when it loads a checkpoint (older names, and a prefix where the checkpoint was saved
    with another head). What its rules do not reach, such as one tower of a larger model, is found by the only tensor
    with the same name from the number of its layer on, or from farther out.

    Args:
        model: the model that the modules are of; a model on the meta device will do.
        modules: names of linear modules.
        stored: the names of the checkpoint's tensors.
        by_name_only: only by transformers' own rules: a weight that it would not load is not the module's.

    Returns:
        The tensor's name by module.

    Raises:
        ModelError: no tensor is a module's weight, or the model computes it from several, or from a part of one.
    """
    stored = list(stored)
    loaded, converted = _loaded_names(model, stored)
    ends = [] if by_name_only else stored
    return {module: _stored_weight(f"{module}.weight", ends, loaded, converted) for module in modules}


def checkpoint_key_map(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """The name in the model of each tensor of a checkpoint, of those that transformers loads as they are."""
    return {tensor: name for name, tensor in _loaded_names(model, list(stored))[0].items()}


def _loaded_names(model: nn.Module, stored: list[str]) -> tuple[dict[str, str], set[str]]:
    """The stored name of each tensor of the model, and the names of those that are converted, not only renamed."""
    if not isinstance(model, PreTrainedModel):
        return {name: name for name in stored}, set()
    # They remember what they matched.
    transforms = deepcopy(get_model_conversion_mapping(model))
    renamings: Any = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters: Any = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix, own = model.base_model_prefix, tensors_by_name(model)
    loaded: dict[str, str] = {}
    converted: set[str] = set()
    for tensor in sorted(stored):
        name, converter = rename_source_key(tensor, renamings, converters, prefix, own)
        if name not in own and tensor in own:
            name, converter = tensor, None
        if converter is None:
            loaded[name] = tensor
        else:
            targets = next(c for c in converters if converter in c.source_patterns).target_patterns
            converted |= {name.replace(targets[0], target) for target in targets}
    return loaded, converted


def _stored_weight(name: str, stored: list[str], loaded: dict[str, str], converted: set[str]) -> str:
    if name in loaded:
        return loaded[name]
    if name in converted:
        raise ModelError(
            f"{name} is not in the checkpoint as it is: transformers makes it from other tensors when it loads the "
            "model. Save the loaded model with save_pretrained(..., save_original_format=False), or use ailora.adapt"
        )
    parts = name.split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    for start in range(1, layer + 1):
        end = "." + ".".join(parts[start:])
        alike = [known for known in stored if f".{known}".endswith(end)]
        if len(alike) == 1:
            return alike[0]
    raise ModelError(
        f"no tensor of the checkpoint is {name}, with or without a prefix; it has {len(loaded)} tensors, such as "
        + ", ".join(sorted(loaded.values())[:3])
    )
