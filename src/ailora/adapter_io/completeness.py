"""Match the modules of an adapter file with the modules that its configuration selects."""

from __future__ import annotations

from peft.utils import ModulesToSaveWrapper
from torch import nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, find_targets
from ailora.errors import InputError
from ailora.formatting import pluralize
from ailora.roles import find_linear_modules


def validate_complete(adapter: AdapterCheckpoint, base: nn.Module) -> None:
    """Refuse a weights file with missing or additional modules, compared with the configuration.

    PEFT would load the file with a warning, or silently ignore some factors. For `all-linear` and for a configuration
    without `target_modules`, only factors for modules unknown to the base model are refused; missing factors are not.

    Args:
        adapter: Adapter to validate.
        base: Base model; its parameters may be on the meta device.

    Raises:
        InputError: The file lacks a module, or has a module that the configuration does not select or the base model
            does not have. The message names the first.
    """
    file = adapter.folder / WEIGHTS_NAME
    linear = find_linear_modules(base)
    if unknown := sorted(adapter.modules.keys() - linear.keys()):
        raise InputError(
            f"{file} has factors for {pluralize(len(unknown), 'module')} that the base model {type(base).__name__} "
            f"does not have, such as {unknown[0]}"
        )
    validate_saved_modules(adapter, base)
    targets = find_targets(adapter.config, linear, adapter.folder / CONFIG_NAME)
    if targets is None:
        return
    if ignored := sorted(adapter.modules.keys() - targets):
        raise InputError(
            f"{file} has factors for {pluralize(len(ignored), 'module')} that {CONFIG_NAME} does not adapt, such as "
            f"{ignored[0]}: loaders would ignore them. Correct target_modules, exclude_modules or layers_to_transform"
        )
    if missing := sorted(targets - adapter.modules.keys()):
        raise InputError(
            f"{file} has no factors for {pluralize(len(missing), 'module')} that {CONFIG_NAME} adapts, such as "
            f"{missing[0]}: the file is incomplete, or {CONFIG_NAME} belongs to a different adapter"
        )


def validate_saved_modules(adapter: AdapterCheckpoint, base: nn.Module) -> None:
    """Refuse a weights file that lacks a module of `modules_to_save`.

    Args:
        adapter: Adapter to validate.
        base: Base model, with or without other adapters; its parameters may be on the meta device.

    Raises:
        InputError: A parameter is missing. The message names the first.
    """
    # PEFT compares only the ends of names: `head` also selects `lm_head`.
    suffixes = adapter.modules_to_save
    for wrapped_name, module in base.named_modules():
        name = original_name(wrapped_name)
        # Of a wrapped module, check only the original: skip the wrapper and its copies for the adapters.
        is_wrapper_or_copy = isinstance(module, ModulesToSaveWrapper) or ".modules_to_save" in wrapped_name
        if is_wrapper_or_copy or not name.endswith(suffixes):
            continue
        for parameter in module.state_dict():
            if f"{name}.{parameter}" not in adapter.saved:
                raise InputError(
                    f"{adapter.folder / WEIGHTS_NAME} has no {name}.{parameter}, although modules_to_save in "
                    f"{CONFIG_NAME} selects {name}: the file is incomplete"
                )


def original_name(name: str) -> str:
    """Return the name that a module or tensor had before PEFT wrapped it for `modules_to_save`."""
    return name.replace(".original_module", "")
