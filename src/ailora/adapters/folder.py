"""The folder of an adapter, and PEFT's configuration in it, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex

from ailora.errors import InputError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

#: Seconds: a pattern of a hostile file must not search for ever.
_PATIENCE = 0.25


def adapter_folder(path: Path | str) -> Path:
    """The folder of an adapter's files, given itself or the folder of a run.

    Raises:
        InputError: neither holds an adapter.
    """
    path = Path(path).expanduser()
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_NAME).is_file():
            if not (folder / WEIGHTS_NAME).is_file():
                pickled = " (pickled adapters are never opened)" if (folder / "adapter_model.bin").exists() else ""
                raise InputError(f"{folder} has no {WEIGHTS_NAME}{pickled}")
            return folder
    raise InputError(f"{path} holds no adapter: no {CONFIG_NAME} in it, nor in its folder adapter/")


def read_config(file: Path) -> dict[str, Any]:
    """PEFT's configuration of a LoRA, as plain data.

    Raises:
        InputError: not that, or with values that no LoRA has.
    """
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"{file}: only LoRA adapters are read, this is {str(kind)[:80]!r}")
    if not _is_positive(config.get("r")) or not _is_positive(config.get("lora_alpha", 8)):
        raise InputError(f"{file}: r and lora_alpha are positive numbers")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(_is_positive(value) for value in pattern.values()):
            raise InputError(f"{file}: {name} maps names to positive numbers")
    if not isinstance(config.get("task_type"), str | None):
        raise InputError(f"{file}: task_type is a name")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InputError(f"{file}: adapters with trained biases are not read")
    return config


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


def by_pattern(name: str, config: Mapping[str, Any], module: str, file: Path) -> float:
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
