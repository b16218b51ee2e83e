"""Load saved adapters of any PEFT type with PEFT, after validating their files."""

from __future__ import annotations

import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, PeftType
from safetensors import SafetensorError
from torch import nn

from ailora.adapter_io.adapter_digests import validate_digests
from ailora.adapter_io.lora_weights import PREFIX
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, resolve_patterns, validate_weights_file
from ailora.errors import InputError, ModelError
from ailora.plain_data import read_json_object
from ailora.safetensors_io import read_header


def load_peft_adapter(base: nn.Module, folder: Path) -> PeftModel:
    """Load a saved adapter with PEFT.

    The adapter is not trusted: loading opens no pickle, imports no module named by the configuration, and limits the
    time to match each regular expression in the configuration.

    Args:
        base: Base model.
        folder: Folder of the adapter.

    Returns:
        The adapted model.

    Raises:
        InputError: The adapter is pickled, damaged or incomplete, or its configuration is invalid.
        ModelError: PEFT cannot load the adapter on the base model.
        SafetensorError: PEFT cannot read the tensors of the weights file.
    """
    validate_weights_file(folder)
    # Opening a named pipe would wait forever for a writer.
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(f"{folder} has no {CONFIG_NAME}")
    validate_digests(folder, read_header(folder / WEIGHTS_NAME))
    file = folder / CONFIG_NAME
    data = read_json_object(file)
    if data.get("megatron_config"):
        raise InputError(f"{file}: megatron_config makes PEFT import a module, and is refused: remove the key")
    # Potentially slow patterns, replaced by the names of the matching modules.
    resolved = resolve_patterns(data, (name for name, _ in base.named_modules()), file)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        for key, value in resolved.items():
            setattr(config, key, value)
        with warnings.catch_warnings():
            # Instead of this warning, `_validate_same_factors` raises an error that names the file.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(base, str(folder), config=config)  # type: ignore[arg-type]
        if config.peft_type == PeftType.LORA:
            _validate_same_factors(adapted, folder)
        return adapted
    except (SafetensorError, InputError):
        raise
    # PEFT does not validate configurations: an unexpected value can raise any exception.
    except Exception as error:
        # If the file lacks a tensor of `modules_to_save`, PEFT raises a KeyError with the name of the tensor.
        if isinstance(error, KeyError) and str(error.args[0]).startswith(PREFIX):
            raise InputError(
                f"{folder / WEIGHTS_NAME} has no {error}, which {CONFIG_NAME} names: the file is incomplete"
            ) from error
        raise ModelError(f"PEFT cannot load {folder} on {type(base).__name__}: {error}") from error


def _validate_same_factors(adapted: PeftModel, folder: Path) -> None:
    """Refuse a file with missing or additional factors. PEFT's `from_pretrained` at most warns about them."""
    # `from_pretrained` does not return the mismatched keys, so the file is loaded again by a method that does.
    load_result = adapted.load_adapter(str(folder), "default")
    if load_result.missing_keys:
        raise InputError(
            f"{folder / WEIGHTS_NAME} has no {load_result.missing_keys[0]}, which {CONFIG_NAME} adapts: the file is "
            f"incomplete, or {CONFIG_NAME} belongs to a different adapter"
        )
    if ignored := [key for key in load_result.unexpected_keys if ".lora_" in key]:
        raise InputError(
            f"{folder / WEIGHTS_NAME} has {ignored[0]}, which {CONFIG_NAME} does not adapt: loaders would ignore it. "
            "Correct target_modules, exclude_modules or layers_to_transform"
        )
