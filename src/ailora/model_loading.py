"""Load models of transformers on the meta device, and validate the weight files and configurations of models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ailora.errors import InputError
from ailora.model_formats import pickle_conversion, refuse_gguf
from ailora.model_path import resolve_model
from ailora.path_kind import ADAPTER_CONFIG_NAME
from ailora.plain_data import read_json_object
from ailora.plan.task_type import TASKS, parse_task_type
from ailora.safetensors_io import Checkpoint

#: Patterns of weight files in the folder of a model.
_WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
#: Configuration keys that hold a number of layers. The limit is far above the number of layers of any model. Without a
#: limit, a damaged configuration could build a million layers, which would take hours.
_LAYER_COUNT_KEY = re.compile(r"(^|_)(n_|num_)?layers?$")
_MAX_LAYERS = 2_000
#: Maximum number of characters of an exception's message in an error. Some messages of transformers fill many screens.
_MAX_ERROR_CHARS = 2_000
#: Message of transformers if an auto class does not support a model type.
_WRONG_CLASS = re.compile(
    r"Unrecognized configuration class <class '[\w.]*?(?P<config>\w+)'> for this kind of AutoModel: (?P<auto_class>\w+)"
)


def auto_class(task_type: str) -> Any:
    """Get the auto class of transformers for a task type.

    Args:
        task_type: Name of a task type in PEFT.

    Returns:
        Auto class, such as `AutoModelForCausalLM`.

    Raises:
        InputError: The task type is unknown.
    """
    return getattr(transformers, TASKS[parse_task_type(task_type)].auto_class)


def counts_positions_from_padding(model: nn.Module) -> bool:
    """Return whether the position ids of a model start after the id of its padding token, as in RoBERTa.

    Such a model needs the padding token with which it was built. Other models need the padding token of their
    tokenizer, because their classification head may read the last token before the padding.
    """
    embeddings = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return any(getattr(embedding, "padding_idx", None) is not None for embedding in embeddings)


def validate_weights(name: Path | str, *, download: bool = False, digests: bool = False) -> None:
    """Validate that transformers would load a model from safetensors files only.

    transformers opens pickles if a folder has no safetensors file, or if the index or the configuration names pickles.
    If the folder of a model also holds an adapter, transformers loads the adapter too.

    Args:
        name: Hub id, local folder, or `builtin:minilm`.
        download: Whether to download the weights of a hub id. Without a download, hub ids are not validated.
        digests: Whether to compare the tensors with the SHA-256 digests in the metadata of the files. This reads
            whole files. Files without digests are not compared.

    Raises:
        InputError: A file is damaged or not safetensors, the folder holds an adapter, or the configuration names a
            pickle or code on the hub, or has too many layers. For pickles, the message has the command for the
            conversion.
    """
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        if not download:
            return
        patterns = [*_WEIGHT_FILES, "config.json", ADAPTER_CONFIG_NAME]
        # Ignore files that are missing or cannot be downloaded: transformers reports them when it loads the model.
        with suppress(OSError, ValueError, HFValidationError):
            folder = Path(snapshot_download(str(name), allow_patterns=patterns))
        if not folder.is_dir():
            return
        if not any(file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)):
            raise InputError(f"model {str(name)!r} has no safetensors file, and {pickle_conversion(name)}")
    refuse_adapter(folder)
    if (folder / "config.json").is_file():
        config = read_json_object(folder / "config.json", allow_nan=True)
        _validate_config(config, str(folder / "config.json"))
        weights = config.get("transformers_weights")
        if weights is not None and not str(weights).endswith((".safetensors", ".safetensors.index.json")):
            raise InputError(
                f"{folder / 'config.json'}: transformers_weights names {str(weights)[:80]!r}, expected a safetensors "
                "file: remove the key"
            )
    checkpoint = Checkpoint.open(folder)
    if digests:
        checkpoint.validate_digests()


def refuse_adapter(folder: Path) -> None:
    """Refuse the folder of an adapter where a model is expected.

    Raises:
        InputError: The folder holds an adapter.
    """
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise InputError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG_NAME}), expected a model: give the base model, or merge the "
            "adapter into the base model with `ailora merge`"
        )


def load_on_meta(
    name: Path | str, task_type: str | None = None, *, num_labels: int | None = None, any_class: bool = False
) -> PreTrainedModel:
    """Build a model on the meta device from its configuration, without weights. Remote code never runs.

    Args:
        name: Hub id, local folder, or `builtin:minilm`.
        task_type: PEFT's task type, which selects the class. None selects the class in the configuration.
        num_labels: Number of outputs of a classification head. None means the number in the configuration.
        any_class: Whether to fall back to the class in the configuration if the model has no class for the task.

    Returns:
        Model with parameters on the meta device.

    Raises:
        InputError: The configuration is missing, damaged or unknown to transformers, or no class fits.
    """
    overrides = {} if num_labels is None else {"num_labels": num_labels}
    folder = Path(resolve_model(name))
    if not (folder / "config.json").is_file():
        refuse_gguf(folder)
        if folder.is_dir():
            refuse_adapter(folder)
            raise InputError(f"model {str(name)!r} has no config.json")
    try:
        _validate_config(PreTrainedConfig.get_config_dict(str(folder))[0], f"the configuration of model {str(name)!r}")
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, **overrides)
    except InputError:
        raise
    # For a damaged file, transformers may raise any exception.
    except Exception as error:
        raise InputError(
            f"cannot load the configuration of model {str(name)!r}: {_format_error(error, name)}"
        ) from error
    try:
        with torch.device("meta"):
            try:
                return _get_model_class(config, task_type)(config)
            except ValueError:
                # Users combine multimodal models with the task type of language models.
                if not any_class or task_type is None:
                    raise
                return _get_model_class(config, None)(config)
    except Exception as error:
        if explanation := _describe_wrong_class(error, name):
            raise InputError(explanation) from error
        task = f" for task type {task_type}" if task_type else ""
        raise InputError(
            f"cannot build a model{task} from the configuration of model {str(name)!r}: {_format_error(error, name)}"
        ) from error


def _validate_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that loads code from the hub or has too many layers.

    Raises:
        InputError: The configuration names code on the hub, or has more layers than any model.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _validate_config(value, where)
        # transformers downloads an implementation with a slash in its name from the hub, and imports its code.
        if str(key).endswith("_implementation") and "/" in str(value):
            raise InputError(
                f"{where}: {key} names code on the hub, {str(value)[:80]!r}, and such code never runs: remove the key"
            )
        if _LAYER_COUNT_KEY.search(str(key)) and type(value) is int and value > _MAX_LAYERS:
            raise InputError(f"{where}: {key} is {str(value)[:80]}, expected at most {_MAX_LAYERS}")


def default_device() -> torch.device:
    """Return the accelerator, or the CPU if there is no accelerator."""
    # A build of torch for CUDA names CUDA as its accelerator even on a machine without a driver.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def validate_device(device: str) -> None:
    """Validate that torch can compute on a device.

    Args:
        device: Name of a device, such as `cuda:0`.

    Raises:
        InputError: The device is unknown to torch, or not available.
    """
    try:
        available = torch.empty(1, device=device).device.type != "meta"
        # For the meta device, on which `torch.empty` succeeds.
        reason = "tensors on it have no values"
    # Each backend has different exceptions for a missing driver or package.
    except Exception as error:
        available, reason = False, str(error)
    if not available:
        raise InputError(f"device {device!r} is not available: {reason}")


def _get_model_class(config: Any, task_type: str | None) -> Any:
    if task_type is not None:
        return partial(auto_class(task_type).from_config, trust_remote_code=False)
    architectures = getattr(config, "architectures", None)
    model_class = getattr(transformers, str((architectures or [""])[0]), None)
    if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
        return model_class
    return partial(AutoModel.from_config, trust_remote_code=False)


def describe_load_error(error: BaseException, name: Path | str) -> str:
    """Describe why transformers cannot load a part of a model.

    Args:
        error: Exception of transformers.
        name: Name of the model.

    Returns:
        Message of the exception; or an explanation, if the model needs remote code or transformers has no class for
        the model and the task.
    """
    if explanation := _describe_wrong_class(error, name):
        return explanation
    if "trust_remote_code" not in str(error):
        return str(error)
    return (
        f"{name} needs Python code from its repository (auto_map), and such code is never run here. Take a model with "
        "a class in transformers; or read the code, load the model in Python with trust_remote_code=True, and give "
        "the model to ailora.adapt"
    )


def _describe_wrong_class(error: BaseException, name: Path | str) -> str | None:
    """Explain the error of an auto class that does not support the model, or return None for any other error.

    transformers' own message lists all supported classes, and so fills the screen.
    """
    match = _WRONG_CLASS.search(str(error))
    if match is None:
        return None
    config_class = getattr(transformers, match["config"], None)
    auto_class_name = match["auto_class"]
    task_title = next((task.title for task in TASKS.values() if task.auto_class == auto_class_name), auto_class_name)
    recipes = [
        task.recipe
        for task in TASKS.values()
        # The mapping of an auto class has no public name.
        if task.recipe and config_class in getattr(transformers, task.auto_class)._model_mapping  # noqa: SLF001
    ]
    supported = f"recipes for this type: {', '.join(recipes)}" if recipes else "no recipe supports this type"
    model_type = getattr(config_class, "model_type", match["config"])
    return f"model {str(name)!r} is of the type {model_type}, which has no class for {task_title}; {supported}"


def _format_error(error: Exception, name: Path | str) -> str:
    return f"{type(error).__name__}: {describe_load_error(error, name)}"[:_MAX_ERROR_CHARS]
