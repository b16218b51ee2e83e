"""Match the tensors of a checkpoint with the parameters of a model, by transformers' rules for loading."""

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
from ailora.weights.tied_weights import get_tied_weights


def match_checkpoint_keys(
    model: nn.Module, modules: Iterable[str], stored: Iterable[str], *, by_name_only: bool = False
) -> dict[str, str]:
    """Find the tensor that holds the weight of each module in a checkpoint.

    When transformers loads a checkpoint, its rules rename tensors that have older names or the prefix of a different
    head. If these rules give no match, the function tries suffixes of the weight's name, from the longest to the suffix
    that begins with the layer number. A suffix matches if exactly one tensor name ends with it. In this way, the layers
    of a text model match those of the language tower in a multimodal checkpoint.

    Args:
        model: The model with the modules, possibly on the meta device.
        modules: Names of linear modules.
        stored: Tensor names in the checkpoint.
        by_name_only: Use transformers' rules alone, without matching suffixes.

    Returns:
        Tensor names by module.

    Raises:
        ModelError: The checkpoint has no tensor for a module, or transformers computes the weight from other tensors.
    """
    stored = list(stored)
    loaded_to_stored, converted = _map_loaded_names(model, stored)
    # A checkpoint stores tied weights once, under the name of the source.
    ties = get_tied_weights(model)
    loaded_to_stored |= {
        tied: loaded_to_stored[source]
        for tied, source in ties.items()
        if tied not in loaded_to_stored and source in loaded_to_stored
    }
    suffix_candidates = [] if by_name_only else stored
    tensor_names = {}
    for module in modules:
        tensor_name = _find_tensor(f"{module}.weight", suffix_candidates, loaded_to_stored, converted)
        if tensor_name is None:
            raise ModelError(
                f"no tensor of the checkpoint is named {module}.weight, with or without a prefix; the checkpoint has "
                f"{len(stored)} tensors: {', '.join(sorted(stored)[:3])}{', ...' if len(stored) > 3 else ''}"
            )
        tensor_names[module] = tensor_name
    return tensor_names


def checkpoint_key_map(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Map tensor names in a checkpoint to names in the model, except tensors converted by transformers."""
    loaded_to_stored, _ = _map_loaded_names(model, list(stored))
    return {stored_name: loaded_name for loaded_name, stored_name in loaded_to_stored.items()}


def _map_loaded_names(model: nn.Module, stored: list[str]) -> tuple[dict[str, str], set[str]]:
    """Match tensor names in the model with tensor names in a checkpoint.

    Returns:
        Name in the model -> name in the checkpoint, and the names in the model of tensors that transformers computes
        from other tensors on loading.
    """
    if not isinstance(model, PreTrainedModel):
        return {name: name for name in stored}, set()
    # The rules record what they matched. Without a copy, the record would affect the matches of a second checkpoint.
    transforms = deepcopy(get_model_conversion_mapping(model))
    renamings: Any = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters: Any = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix, model_tensors = model.base_model_prefix, tensors_by_name(model)
    loaded_to_stored: dict[str, str] = {}
    converted: set[str] = set()
    for stored_name in sorted(stored):
        name, source_pattern = rename_source_key(stored_name, renamings, converters, prefix, model_tensors)
        # A rule may rename a tensor that already has its name in the model.
        if name not in model_tensors and stored_name in model_tensors:
            name, source_pattern = stored_name, None
        # A source pattern means that a converter computes the tensors of the model from this tensor.
        if source_pattern is None:
            loaded_to_stored[name] = stored_name
        else:
            # `name` follows the converter's first target pattern, but a converter may have several targets.
            targets = next(c for c in converters if source_pattern in c.source_patterns).target_patterns
            converted |= {name.replace(targets[0], target) for target in targets}
    return loaded_to_stored, converted


def _find_tensor(
    name: str, suffix_candidates: list[str], loaded_to_stored: dict[str, str], converted: set[str]
) -> str | None:
    """Return the stored name of a parameter, matched by its full name or by a suffix, or None if nothing matches.

    Raises:
        ModelError: transformers computes the parameter from several tensors.
    """
    if name in loaded_to_stored:
        return loaded_to_stored[name]
    if name in converted:
        raise ModelError(
            f"{name} is not in the checkpoint: transformers computes this weight from other tensors on loading. Save "
            "the loaded model with save_pretrained(..., save_original_format=False), or use ailora.adapt"
        )
    parts = name.split(".")
    # Without a layer number, no suffix is tried.
    layer_position = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    for start in range(1, layer_position + 1):
        suffix = "." + ".".join(parts[start:])
        matches = [tensor for tensor in suffix_candidates if f".{tensor}".endswith(suffix)]
        if len(matches) == 1:
            return matches[0]
    return None
