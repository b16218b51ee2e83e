"""Names of adapters: usable by torch and PEFT, not taken, and no part of a tensor name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ailora.errors import InputError, ModelError
from ailora.lora.base_model import get_base_model

#: Maximum length of a folder name in common file systems.
_MAX_NAME_BYTES = 255
#: Components that PEFT adds to the tensor names of the base model, and the names of most parameters.
_PEFT_COMPONENTS = frozenset(
    {
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_dropout"),
        *("base_model", "model", "base_layer", "original_module", "modules_to_save", "token_adapter"),
        *("weight", "bias"),
    }
)


def validate_adapter_name(model: nn.Module, adapter_name: str) -> None:
    """Refuse a taken or unusable adapter name, and a model that has adapters but is not a `PeftModel`.

    Raises:
        InputError: The name cannot be used for an adapter.
        ModelError: The name is taken, or the model has adapters but is not a `PeftModel`.
    """
    if not isinstance(adapter_name, str) or not _is_usable_name(adapter_name):
        raise InputError(
            f"adapter_name {adapter_name!r} cannot be used: expected a folder name without dots that is not a part of "
            "'lora_' or an attribute of torch modules"
        )
    if isinstance(model, PeftModel):
        if adapter_name in model.peft_config:
            raise ModelError(f"the model already has an adapter {adapter_name!r}: choose a different adapter_name")
    elif any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            "the model already has adapters: pass the PeftModel itself and a new adapter_name, or unload() first"
        )
    validate_no_tensor_name(get_base_model(model), adapter_name)


def validate_existing_names(model: PeftModel) -> None:
    """Refuse adapters that PEFT added under names that are components of tensor names.

    Raises:
        ModelError: Names of the model's tensors contain the name of an adapter between dots.
    """
    components = _get_name_components(get_base_model(model))
    for adapter_name in model.peft_config:
        if adapter_name in components:
            raise ModelError(
                f"the model has an adapter {adapter_name!r}, and names of the model's tensors contain "
                f"{adapter_name!r}: PEFT would leave these tensors out of the files of other adapters. Delete the "
                "adapter, or load it under a different name"
            )


def validate_no_tensor_name(base: nn.Module, adapter_name: str) -> None:
    """Refuse a name of a new adapter that is a component of a tensor name.

    Args:
        base: Base model, with or without other adapters.
        adapter_name: PEFT's name for the new adapter.

    Raises:
        InputError: Names of the model's tensors contain the name between dots.
    """
    # When PEFT saves an adapter, it leaves out every tensor whose name contains the name of another adapter.
    if adapter_name in _get_name_components(base):
        raise InputError(
            f"adapter_name {adapter_name!r} cannot be used: names of the model's tensors contain {adapter_name!r}, and "
            "PEFT would leave these tensors out of the files of other adapters. Choose a different name"
        )


def _get_name_components(base: nn.Module) -> frozenset[str]:
    """Return the components, between dots, of all tensor names of a base model, without those of its adapters."""
    modules = base.named_modules(remove_duplicate=False)
    parameters = base.named_parameters(remove_duplicate=False)
    names = (name for name, _ in chain(modules, parameters))
    return _PEFT_COMPONENTS.union(*(_split_above_adapters(name) for name in names))


def _split_above_adapters(name: str) -> Iterator[str]:
    """Split a name at the dots, up to the first module of PEFT whose children have the names of adapters."""
    for component in name.split("."):
        yield component
        # The names of these modules start with `lora_` in all variants of LoRA, for example `lora_diag` in KaSA. The
        # next component is an adapter's name. The components after it, such as `weight`, also occur in the base model.
        if component.startswith("lora_") or component in {"modules_to_save", "token_adapter"}:
            return


def _is_usable_name(name: str) -> bool:
    """Return whether a name can be a key of torch's `ModuleDict`, a part of tensor names, and a folder name."""
    reserved = any(hasattr(container(), name) for container in (nn.ModuleDict, nn.ParameterDict))
    fits_folder = name.isprintable() and len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
    # When PEFT loads an adapter whose name is a substring of its prefix `lora_`, it may initialize the weights anew.
    is_part_of_prefix = name in "lora_"
    return not reserved and not is_part_of_prefix and not set(name) & set("./\\") and fits_folder
