"""Read and validate `adapter_config.json`, PEFT's configuration of a LoRA."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists

from ailora.errors import InputError
from ailora.formatting import is_real
from ailora.module_pattern import ModulePatterns
from ailora.path_kind import ADAPTER_CONFIG_NAME
from ailora.plain_data import read_json_object
from ailora.plan.task_type import parse_task_type

CONFIG_NAME = ADAPTER_CONFIG_NAME
WEIGHTS_NAME = "adapter_model.safetensors"

#: PEFT's default of `lora_alpha`.
_DEFAULT_ALPHA = 8
#: Values of `init_lora_weights` that keep the base weights. For other values, PEFT changes the base weights again
#: whenever it loads the adapter.
_INITS_KEEPING_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
#: Keys that may be set, because the adapter remains LoRA with the update `s B A`, or DoRA. All other keys must be
#: unset, including unknown keys from newer versions of PEFT.
_ALLOWED_KEYS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("target_modules", "task_type", "use_dora", "use_rslora", "runtime_config", "peft_library_name"),
}


def read_config(file: Path) -> dict[str, Any]:
    """Read and validate PEFT's configuration of a LoRA.

    Args:
        file: File `adapter_config.json`.

    Returns:
        The configuration as plain data.

    Raises:
        InputError: The file is not the configuration of a LoRA, has invalid values, or enables an unsupported feature
            (layer replication, trained biases).
    """
    config = read_json_object(file)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: expected an adapter of the type 'LORA', got {str(config.get('peft_type'))[:80]!r}")
    if not _is_positive(config.get("r")) or not _is_positive(config.get("lora_alpha", _DEFAULT_ALPHA)):
        got = f"{_short(config.get('r'))} and {_short(config.get('lora_alpha', _DEFAULT_ALPHA))}"
        raise InputError(f"{file}: r and lora_alpha must be positive numbers, got {got}")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(_is_positive(value) for value in pattern.values()):
            raise InputError(f"{file}: {name} must map names to positive numbers, got {_short(pattern)}")
    # A list and not a mapping, because "r" may also be a key of `rank_pattern`.
    for key, rank in [("r", config["r"]), *(config.get("rank_pattern") or {}).items()]:
        # PEFT allocates tensors of this size, and torch refuses 4.0.
        if type(rank) is not int:
            raise InputError(f"{file}: the rank {_short(key)} must be a whole number, got {_short(rank)}")
    _validate_types(config, file)
    if config.get("layer_replication") is not None:
        raise InputError(f"{file}: layer_replication is not supported, because replicated layers share weights")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InputError(f"{file}: adapters with trained biases are not supported")
    return config


def _validate_types(config: Mapping[str, Any], file: Path) -> None:
    dropout = config.get("lora_dropout")
    if dropout is not None and not (is_real(dropout) and 0 <= dropout <= 1):
        raise InputError(f"{file}: lora_dropout must be between 0 and 1, got {_short(dropout)}")
    for key in ("task_type", "base_model_name_or_path", "peft_version", "revision"):
        if not isinstance(config.get(key), str | None):
            raise InputError(f"{file}: {key} must be a string, got {_short(config[key])}")
    if config.get("task_type") is not None:
        try:
            parse_task_type(config["task_type"])
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    for key in ("use_dora", "use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key), bool | None):
            raise InputError(f"{file}: {key} must be true or false, got {_short(config[key])}")
    validate_target_types(config, file)


def validate_target_types(config: Mapping[str, Any], file: Path) -> None:
    """Refuse unexpected types in the keys that select modules or set the rank or alpha of modules.

    Raises:
        InputError: A value has an unexpected type. The message names the key.
    """
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = config.get(key)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise InputError(f"{file}: {key} must be a string or a list of strings, got {_short(value)}")
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(number) is int for number in numbers):
        raise InputError(f"{file}: layers_to_transform must be a list of whole numbers, got {_short(layers)}")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key), dict | None):
            raise InputError(f"{file}: {key} must map names to positive numbers, got {_short(config[key])}")


def _short(value: object) -> str:
    return repr(value)[:80]


def validate_weights_file(folder: Path) -> None:
    """Refuse an adapter without a safetensors file, because PEFT would open a pickle instead.

    Raises:
        InputError: The file is missing. For a pickled adapter, the message contains the command to convert the pickle.
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
        f"{folder} has no {WEIGHTS_NAME}, and pickled adapters are never opened. If you trust {pickled.name}, convert "
        f"the file once: python -c {shlex.quote(statements)}"
    )


def _is_positive(value: object) -> bool:
    # Outside these limits, norms of updates could overflow or underflow; see `_MAX_FLOAT64_ENTRY` in `lora_weights`.
    return is_real(value) and 1e-30 < value < 1e12


def validate_plain(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an adapter that changes the base weights, or that is neither LoRA with the update `s B A` nor DoRA.

    Raises:
        InputError: The init changed the base weights, or an unsupported option is set. The message names the option.
    """
    init = config.get("init_lora_weights", True)
    if init not in _INITS_KEEPING_BASE:
        raise InputError(
            f"{folder}: init_lora_weights {str(init)[:40]!r} changes the base weights whenever PEFT loads the adapter. "
            "Convert the adapter first, with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    unsupported = [
        key for key, value in config.items() if key not in _ALLOWED_KEYS and value not in (None, False, {}, [], "")
    ]
    if unsupported:
        raise InputError(f"{folder}: {unsupported[0]} is set: only plain LoRA, rsLoRA and DoRA are supported")


def find_pattern_value(name: str, config: Mapping[str, Any], module: str, patterns: ModulePatterns) -> float:
    """Look up the rank or alpha of a module by PEFT's rule.

    Keys are regular expressions. The first key that matches the whole name, or its end after a dot, applies.

    Args:
        name: `rank_pattern` or `alpha_pattern`.
        config: PEFT's configuration.
        module: Name of the module.
        patterns: Pattern matcher, with a time limit for all look-ups together.

    Returns:
        The rank or alpha; `r` or `lora_alpha` if no key matches.

    Raises:
        InputError: A key is not a regular expression, or the search exceeds the time limit.
    """
    for key, value in (config.get(name) or {}).items():
        if patterns.fullmatch(rf"(?:.*\.)?(?:{key})", module):
            return value
    return config["r"] if name == "rank_pattern" else config.get("lora_alpha", _DEFAULT_ALPHA)


#: Patterns without repetitions, groups or character sets. A search for such a pattern takes time linear in the length
#: of the name.
_HARMLESS_PATTERN = re.compile(r"[^*+?{(\[]*")
#: PEFT's value for all linear modules except the head.
_ALL_LINEAR = "all-linear"


def resolve_patterns(config: dict[str, Any], modules: Iterable[str], file: Path) -> dict[str, Any]:
    """Replace potentially slow patterns in a configuration by the names of the matching modules.

    PEFT searches without a time limit. Patterns without repetitions, groups or character sets are fast, and stay
    unchanged.

    Args:
        config: PEFT's configuration, as plain data.
        modules: Names of all modules of the base model.
        file: File of the configuration, for messages.

    Returns:
        Key -> new value, only for changed keys.

    Raises:
        InputError: A value has an unexpected type or is not a regular expression, its search exceeds the time limit, or
            `modules_to_save` or `layers_pattern` holds a regular expression that may be slow.
    """
    validate_target_types(config, file)
    modules = list(modules)
    resolved: dict[str, Any] = {}
    for key in ("target_modules", "exclude_modules"):
        value = config.get(key)
        if isinstance(value, str) and not _is_harmless(value):
            patterns = ModulePatterns(f"{file}: {key}")
            names = [name for name in modules if patterns.fullmatch(value, name)]
            # `$.` matches no name. An empty pattern would match the root module, whose name is empty.
            resolved[key] = "|".join(map(re.escape, names)) or "$."
    for key in ("modules_to_save", "layers_pattern"):
        value = config.get(key) or []
        names = value if isinstance(value, list) else [value]
        if expressions := [name for name in names if not _is_harmless(name)]:
            raise InputError(f"{file}: {key} must hold names, got the regular expression {_short(expressions[0])}")
    for key in ("rank_pattern", "alpha_pattern"):
        if not all(map(_is_harmless, config.get(key) or {})):
            patterns = ModulePatterns(f"{file}: {key}")
            explicit = config | resolved
            targets = [name for name in modules if not _names_targets(config) or _is_target(explicit, name)]
            values = {name: find_pattern_value(key, config, name, patterns) for name in targets}
            # `^` keeps PEFT from matching a key with the end of a longer name.
            resolved[key] = {f"^{re.escape(name)}": value for name, value in values.items()}
    return resolved


def find_targets(config: dict[str, Any], modules: Iterable[str], file: Path) -> set[str] | None:
    """Find the modules selected for adapters by a configuration, following PEFT's rule.

    Args:
        config: PEFT's configuration, as plain data.
        modules: Names of the modules to search.
        file: File of the configuration, for messages.

    Returns:
        Names of the selected modules. None for `all-linear` and for a configuration without `target_modules`.

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
    """Return whether a configuration with resolved patterns adapts a module."""
    keys = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
    values = SimpleNamespace(target_parameters=None, **{key: config.get(key) for key in keys})
    return bool(check_target_module_exists(values, module))  # type: ignore[arg-type]
