"""PEFT's configuration of a LoRA, read and validated."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists

from ailora.errors import InputError
from ailora.module_pattern import ModulePatterns
from ailora.path_kind import ADAPTER_CONFIG_NAME
from ailora.plain_data import read_json_object
from ailora.plan.task_type import parse_task_type

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
    for key, rank in {"r": config["r"], **(config.get("rank_pattern") or {})}.items():
        # PEFT allocates with it, and raises at 4.0.
        if type(rank) is not int:
            raise InputError(f"{file}: the rank {_short(rank)} of {_short(key)} is not a whole number")
    _validate_types(config, file)
    if config.get("layer_replication") is not None:
        raise InputError(f"{file}: layer_replication is not supported: its layers share their weights")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InputError(f"{file}: adapters with trained biases are not read")
    return config


def _validate_types(config: Mapping[str, Any], file: Path) -> None:
    dropout = config.get("lora_dropout")
    if dropout is not None and (
        isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1
    ):
        raise InputError(f"{file}: lora_dropout is a number from 0 to 1, not {_short(dropout)}")
    for key in ("task_type", "base_model_name_or_path", "peft_version", "revision"):
        if not isinstance(config.get(key), str | None):
            raise InputError(f"{file}: {key} is a name, not {_short(config[key])}")
    if config.get("task_type") is not None:
        try:
            parse_task_type(config["task_type"])
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    for key in ("use_dora", "use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key), bool | None):
            raise InputError(f"{file}: {key} is true or false, not {_short(config[key])}")
    validate_target_types(config, file)


def validate_target_types(config: Mapping[str, Any], file: Path) -> None:
    """Refuse names of modules that are none.

    Raises:
        InputError: Names the key.
    """
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = config.get(key)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise InputError(f"{file}: {key} is a text or a list of texts, not {_short(value)}")
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(number) is int for number in numbers):
        raise InputError(f"{file}: layers_to_transform is a list of whole numbers, not {_short(layers)}")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key), dict | None):
            raise InputError(f"{file}: {key} maps names to positive numbers, not {_short(config[key])}")


def _short(value: object) -> str:
    return repr(value)[:80]


def validate_weights_file(folder: Path) -> None:
    """Refuse an adapter without a safetensors file; PEFT would open a pickle in its place.

    Raises:
        InputError: There is none; of a pickled adapter with the command that converts it.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return
    pickled = folder / "adapter_model.bin"
    if not pickled.exists():
        raise InputError(f"{folder} has no {WEIGHTS_NAME}")
    statements = (
        f"import torch, safetensors.torch as s; t = torch.load({str(pickled)!r}, weights_only=True); "
        f"s.save_file({{k: v.contiguous() for k, v in t.items()}}, {str(folder / WEIGHTS_NAME)!r})"
    )
    raise InputError(
        f"{folder} has no {WEIGHTS_NAME}, and pickled adapters are never opened. Convert {pickled.name} once, if you "
        f"trust it: python -c {shlex.quote(statements)}"
    )


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


def pattern_value(name: str, config: Mapping[str, Any], module: str, patterns: ModulePatterns) -> float:
    """Return the rank or alpha of a module, by PEFT's rule.

    The first key counts that is its name, the end of it after a dot, or a regular expression for either; else what all
    others have.

    Raises:
        InputError: a key that cannot be searched for.
    """
    for key, value in (config.get(name) or {}).items():
        if patterns.fullmatch(rf"(?:.*\.)?(?:{key})", module):
            return value
    return config["r"] if name == "rank_pattern" else config.get("lora_alpha", 8)


#: Without repetition and group, PEFT searches for a pattern in a time that does not grow faster than the name.
_HARMLESS_PATTERN = re.compile(r"[^*+?{(\[]*")
#: PEFT's word for all linear modules but the head.
_ALL_LINEAR = "all-linear"


def resolve_patterns(config: dict[str, Any], modules: Iterable[str], file: Path) -> dict[str, Any]:
    """Return the keys of a configuration that PEFT searches modules by, with the names that hostile patterns match.

    PEFT's own searches have no time limit. Patterns without repetition or group stay as they are.

    Args:
        config: PEFT's configuration, as plain data.
        modules: Names of all modules of the base model.
        file: The configuration's file, for messages.

    Raises:
        InputError: A value that is no pattern, or one that takes too long.
    """
    validate_target_types(config, file)
    modules = list(modules)
    resolved: dict[str, Any] = {}
    for key in ("target_modules", "exclude_modules"):
        value = config.get(key)
        if isinstance(value, str) and not _is_harmless(value):
            patterns = ModulePatterns(f"{file}: {key}")
            names = [name for name in modules if patterns.fullmatch(value, name)]
            # Of no name, a pattern that matches none.
            resolved[key] = "|".join(map(re.escape, names)) or "$."
    for key in ("modules_to_save", "layers_pattern"):
        value = config.get(key) or []
        names = value if isinstance(value, list) else [value]
        if odd := [name for name in names if not _is_harmless(name)]:
            raise InputError(f"{file}: {key} holds names, not regular expressions such as {_short(odd[0])}")
    for key in ("rank_pattern", "alpha_pattern"):
        if not all(map(_is_harmless, config.get(key) or {})):
            patterns = ModulePatterns(f"{file}: {key}")
            targets = [name for name in modules if not _names_targets(config) or _is_target(config | resolved, name)]
            values = {name: pattern_value(key, config, name, patterns) for name in targets}
            resolved[key] = {f"^{re.escape(name)}": value for name, value in values.items()}
    return resolved


def find_targets(config: dict[str, Any], modules: Iterable[str], file: Path) -> set[str] | None:
    """Return which modules a configuration adapts, by PEFT's rule.

    Returns:
        The names; None where the configuration does not name them.

    Raises:
        InputError: See `resolve_patterns`.
    """
    modules = list(modules)
    if not _names_targets(config):
        return None
    explicit = config | resolve_patterns(config, modules, file)
    return {module for module in modules if _is_target(explicit, module)}


def _is_harmless(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return _HARMLESS_PATTERN.fullmatch(pattern) is not None


def _names_targets(config: Mapping[str, Any]) -> bool:
    return bool(config.get("target_modules")) and config["target_modules"] != _ALL_LINEAR


def _is_target(config: Mapping[str, Any], module: str) -> bool:
    """Return whether a configuration without hostile patterns adapts a module."""
    keys = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
    values = SimpleNamespace(target_parameters=None, **{key: config.get(key) for key in keys})
    return bool(check_target_module_exists(values, module))  # type: ignore[arg-type]
