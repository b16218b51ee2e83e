"""PEFT's configuration of a LoRA, read and validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex

from ailora.errors import InputError
from ailora.path_kind import ADAPTER_CONFIG_NAME
from ailora.plain_data import read_json_object

CONFIG_NAME = ADAPTER_CONFIG_NAME
WEIGHTS_NAME = "adapter_model.safetensors"

#: Inits that leave the base weights as they are. PEFT records the others and changes the weights again when it loads.
_HARMLESS_INITS = (True, False, None, "gaussian", "orthogonal", "eva")
#: What else PEFT's configuration of a LoRA says that changes nothing in `W + s B A`.
_HARMLESS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("target_modules", "task_type", "use_dora", "use_rslora", "runtime_config", "peft_library_name"),
}

#: Seconds: a pattern of a hostile file must not search for ever.
_PATIENCE = 0.25


def read_config(file: Path) -> dict[str, Any]:
    """PEFT's configuration of a LoRA, as plain data.

    Raises:
        InputError: not that, or with values that no LoRA has.
    """
    config = read_json_object(file)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: only LoRA adapters are read, this is {str(config.get('peft_type'))[:80]!r}")
    if not _is_positive(config.get("r")) or not _is_positive(config.get("lora_alpha", 8)):
        raise InputError(f"{file}: r and lora_alpha are positive numbers")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(_is_positive(value) for value in pattern.values()):
            raise InputError(f"{file}: {name} maps names to positive numbers")
    if not isinstance(config.get("task_type"), str | None):
        raise InputError(f"{file}: task_type is a name")
    if config.get("layer_replication") is not None:
        raise InputError(f"{file}: layer_replication is not supported: its layers share their weights")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InputError(f"{file}: adapters with trained biases are not read")
    return config


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-30 < value < 1e12


def validate_plain(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a LoRA whose product is not all that it does: one that changed its base, or computes something else.

    Raises:
        InputError: which option says so.
    """
    init = config.get("init_lora_weights", True)
    if init not in _HARMLESS_INITS:
        raise InputError(
            f"{folder}: init_lora_weights {str(init)[:40]!r} changed the base weights, and does so again when PEFT "
            "loads it: convert it first, with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    odd = [key for key, value in config.items() if key not in _HARMLESS and value not in (None, False, {}, [], "")]
    if odd:
        raise InputError(f"{folder}: {odd[0]} is set: only plain LoRA, rsLoRA and DoRA are read here")


def pattern_value(name: str, config: Mapping[str, Any], module: str, file: Path) -> float:
    """The rank or alpha of a module, by PEFT's rule: the first key that is its name, the end of it after a dot, or a
    regular expression for either; else what all others have.

    Raises:
        InputError: a key that cannot be searched for.
    """
    for key, value in (config.get(name) or {}).items():
        try:
            if regex.match(rf"(.*\.)?({key})$", module, timeout=_PATIENCE):
                return value
        except (regex.error, TimeoutError, RecursionError, OverflowError, MemoryError) as error:
            raise InputError(f"{file}: {name}: {key[:80]!r} cannot be searched for: {error}") from None
    return config["r"] if name == "rank_pattern" else config.get("lora_alpha", 8)
