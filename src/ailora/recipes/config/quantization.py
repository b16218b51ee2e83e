"""`quantization:`. How the base model is quantized on loading, as transformers takes it."""

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


def quantization_config(config: RunConfig) -> QuantizationConfigMixin | None:
    """What `from_pretrained` takes; None where the model stays as it is stored.

    `{load_in_4bit: true, ...}` holds fields of transformers' `BitsAndBytesConfig`;
    `{torchao: Int8WeightOnlyConfig, ...}` names a configuration of `torchao.quantization` and its fields.

    Raises:
        InputError: a field or class that does not exist, a value that the library refuses, a missing package; full
            fine-tuning and inits of PEFT that overwrite weights, which quantized weights cannot take.
    """
    fields = config.quantization
    if fields is None:
        return None
    match config.adapter.method:
        case FullFineTuning():
            raise InputError("quantization: quantized weights cannot be trained whole; choose a policy other than full")
        case PeftInit(overwrites_base=True) as init:
            raise InputError(
                f"quantization: {init} overwrites weights, and quantized ones would round what is left of them; choose "
                "ailora, or peft:lora"
            )
    try:
        return _torchao(fields) if "torchao" in fields else _bitsandbytes(fields)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise InputError(f"quantization: {error}") from error


def _bitsandbytes(fields: dict[str, Any]) -> BitsAndBytesConfig:
    allowed = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    for key in fields:
        if key not in allowed:
            raise unknown_name("key in quantization", key, [*allowed, "torchao"])
    if not (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        raise InputError("quantization takes load_in_4bit: true, load_in_8bit: true, or torchao: the name of a class")
    _require("bitsandbytes")
    return BitsAndBytesConfig(**fields)


def _torchao(fields: dict[str, Any]) -> TorchAoConfig:
    _require("torchao")
    library = import_module("torchao.quantization")
    known = sorted(name for name in vars(library) if name.endswith("Config") and isinstance(vars(library)[name], type))
    name = fields["torchao"]
    if name not in known:
        raise unknown_name("quantization.torchao", name, known)
    made = getattr(library, name)(**{key: value for key, value in fields.items() if key != "torchao"})
    return TorchAoConfig(made)


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"quantization needs {package}: pip install 'ailora[quantized]'")
