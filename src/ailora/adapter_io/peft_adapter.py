"""Load saved adapters of any kind with PEFT, after what it trusts in their files is checked."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import nn

from ailora.adapter_io.peft_config_file import CONFIG_NAME, resolve_patterns, validate_weights_file
from ailora.errors import InputError, ModelError
from ailora.plain_data import read_json_object


def load_peft_adapter(base: nn.Module, folder: Path) -> PeftModel:
    """Load a saved adapter with PEFT.

    No pickle is opened, no module imported that the configuration names, no pattern searched without a time limit.

    Args:
        base: the base model.
        folder: the adapter's.

    Raises:
        InputError: a pickled adapter, or a configuration that is not read.
        ModelError: PEFT cannot load it on this base.
        SafetensorError: the tensors are damaged.
    """
    validate_weights_file(folder)
    file = folder / CONFIG_NAME
    data = read_json_object(file)
    if data.get("megatron_config"):
        raise InputError(f"{file}: megatron_config is set, for which PEFT imports a module: remove the key")
    resolved = resolve_patterns(data, (name for name, _ in base.named_modules()), file)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        for key, value in resolved.items():
            setattr(config, key, value)
        return PeftModel.from_pretrained(base, str(folder), config=config)  # type: ignore[arg-type]
    except SafetensorError:
        raise
    # Values that PEFT does not expect can fail in any way.
    except Exception as error:
        raise ModelError(f"PEFT cannot load {folder} on {type(base).__name__}: {error}") from error
