"""Section `quantization:`: quantization of the base model on loading."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from ailora.errors import InputError, unknown_name
from ailora.recipes.config.method import FullFineTuning, PeftInit
from ailora.recipes.config.schema import RunConfig


def build_quantization_config(config: RunConfig) -> QuantizationConfigMixin | None:
    """Build the argument `quantization_config` of `from_pretrained`.

    The section holds either fields of transformers' `BitsAndBytesConfig`, such as `load_in_4bit: true`, or the name of
    a class in `torchao.quantization` with its fields, such as `torchao: Int8WeightOnlyConfig`.

    Args:
        config: Configuration of the run.

    Returns:
        The argument; None without a section `quantization:`.

    Raises:
        InputError: A field or class is unknown, a value is invalid, a package is missing, or the training method
            changes base weights.
    """
    fields = config.quantization
    if fields is None:
        return None
    match config.adapter.method:
        case FullFineTuning():
            raise InputError(
                "quantization: quantized weights cannot be fully fine-tuned; choose a policy other than 'full'"
            )
        case PeftInit(overwrites_base=True) as init:
            raise InputError(
                f"quantization: {init} overwrites base weights, and quantization would round the residual weights; "
                "choose ailora or peft:lora"
            )
        case _:
            pass
    try:
        return _build_torchao(fields) if "torchao" in fields else _build_bitsandbytes(fields)
    except InputError:
        # It is a ValueError, and names the section already.
        raise
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise InputError(f"quantization: {error}") from error


def _build_bitsandbytes(fields: dict[str, Any]) -> BitsAndBytesConfig:
    # BitsAndBytesConfig ignores unknown keywords, so misspelled fields would have no effect.
    allowed = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    for key in fields:
        if key not in allowed:
            raise unknown_name("key in quantization", key, [*allowed, "torchao"])
    if not (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        raise InputError("quantization requires load_in_4bit: true, load_in_8bit: true, or torchao: CLASS")
    _validate_installed("bitsandbytes")
    return BitsAndBytesConfig(**fields)


def _build_torchao(fields: dict[str, Any]) -> TorchAoConfig:
    _validate_installed("torchao")
    library = import_module("torchao.quantization")
    classes = [name for name, value in vars(library).items() if name.endswith("Config") and isinstance(value, type)]
    name = fields["torchao"]
    if name not in classes:
        raise unknown_name("quantization.torchao", name, sorted(classes))
    config_class = getattr(library, name)
    return TorchAoConfig(config_class(**{key: value for key, value in fields.items() if key != "torchao"}))


def _validate_installed(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"quantization requires the package {package}: pip install 'ailora[quantized]'")
