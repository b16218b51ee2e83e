"""Validate training arguments that transformers refuses only during training, or never."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ailora.errors import InputError
from ailora.plain_data import read_json_object


class _Broken(NamedTuple):
    """Promise that `true` would break, and the other way to the same end."""

    promise: str
    instead: str


_RESUMES = "the same command after a kill would not give the same run"
#: Key -> what `true` would break.
_BROKEN_PROMISES = {
    "save_only_model": _Broken(
        f"{_RESUMES}, as checkpoints would lack the optimizer's state",
        "training.save_total_limit keeps few of them, training.save_strategy: no none",
    ),
    "ignore_data_skip": _Broken(
        f"{_RESUMES}, as it would train on other rows", "skipping the rows of a resumed epoch takes moments"
    ),
    "auto_find_batch_size": _Broken(
        "after running out of memory it starts over from trained weights, with other batches",
        "`ailora train --dry-run` estimates the memory of training.per_device_train_batch_size",
    ),
    "dataloader_persistent_workers": _Broken(
        f"{_RESUMES}, as workers draw other random numbers", "workers that are started anew for an epoch cost seconds"
    ),
    "dataloader_drop_last": _Broken(
        "evaluations would leave the last rows out as well", "the last batch of an epoch is a smaller one"
    ),
    "enable_jit_checkpoint": _Broken(
        "a run that is told to end would count as finished, and its half-trained model be measured",
        "a killed run goes on from its last checkpoint: set training.save_steps",
    ),
    "logging_nan_inf_filter": _Broken(
        "losses that are not finite would be left out of the log and of evaluations",
        "on_nonfinite says whether training goes on after them",
    ),
}
#: Steps of a schedule at which it is asked for a rate.
_SCHEDULE_STEPS = 1000
#: Arguments that may be the path of a JSON file.
_JSON_FILES = ("deepspeed", "fsdp_config", "accelerator_config")


def validate_resumable(training: Mapping[str, Any]) -> None:
    """Refuse options with which a resumed run would differ from an uninterrupted run, or results would mislead.

    Args:
        training: Mapping of `training:`.

    Raises:
        InputError: Names the option, and the other way to the same end.
    """
    for key, broken in _BROKEN_PROMISES.items():
        if training.get(key):
            raise InputError(f"training.{key} cannot be true: {broken.promise}. Instead: {broken.instead}")
    if training.get("dataloader_in_order") is False and training.get("dataloader_num_workers", 0) > 1:
        raise InputError("training.dataloader_in_order cannot be false: no two runs would train on the same batches")


def validate_usable(training: Mapping[str, Any], arguments: TrainingArguments) -> None:
    """Validate training arguments by building a small optimizer, schedule and data loader from them.

    Args:
        training: Mapping of `training:`, including the engine's keys.
        arguments: Arguments of the mapping, without the engine.

    Raises:
        InputError: The Trainer could not use a value, or the package of a value is not installed.
    """
    for key in _JSON_FILES:
        _validate_json_file(key, training.get(key))
    _validate_accelerator(training.get("accelerator_config"))
    for key, package in (("deepspeed", "deepspeed"), ("use_liger_kernel", "liger_kernel")):
        if training.get(key) and find_spec(package) is None:
            raise InputError(f"training.{key}: the package {package} is not installed")
    _validate_optimizer(arguments)
    _validate_loader(arguments)


def _validate_json_file(key: str, value: object) -> None:
    if isinstance(value, str) and not value.startswith("{"):
        try:
            read_json_object(Path(value).expanduser())
        except InputError as error:
            raise InputError(f"training.{key}: expected a mapping or the path of a JSON file: {error}") from None


def _validate_accelerator(value: object) -> None:
    try:
        if isinstance(value, dict):
            AcceleratorConfig(**value)
        elif isinstance(value, str) and not value.startswith("{"):
            AcceleratorConfig.from_json_file(value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"training.accelerator_config: {error}") from None


def _validate_optimizer(arguments: TrainingArguments) -> None:
    model: Any = nn.Linear(2, 2)
    try:
        make, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        # Optimizers with target modules would look for them in this model.
        if arguments.optim_target_modules is None and isinstance(make, type):
            parameters = options.pop("params", options.pop("model", model.parameters()))
            make(parameters, **options)
    except Exception as error:
        if arguments.optim_target_modules is None or isinstance(error, ImportError):
            raise InputError(f"training.optim {OptimizerNames(arguments.optim).value}: {_first_line(error)}") from None
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.learning_rate)
    kwargs = arguments.lr_scheduler_kwargs
    try:
        scheduler = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=_SCHEDULE_STEPS,
            scheduler_specific_kwargs=kwargs,  # type: ignore[arg-type]
        )
        for rate in getattr(scheduler, "lr_lambdas", ()):
            [float(rate(step)) for step in range(_SCHEDULE_STEPS)]
    except Exception as error:
        shown = "" if kwargs is None else f" with lr_scheduler_kwargs {kwargs}"
        name = SchedulerType(arguments.lr_scheduler_type).value
        raise InputError(f"training.lr_scheduler_type {name}{shown}: {_first_line(error)}") from None


def _validate_loader(arguments: TrainingArguments) -> None:
    # A loader starts no worker before the first batch.
    try:
        DataLoader(
            range(1),  # type: ignore[arg-type]
            num_workers=arguments.dataloader_num_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            persistent_workers=arguments.dataloader_persistent_workers,
            multiprocessing_context=getattr(arguments, "dataloader_multiprocessing_context", None),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"training.dataloader_*: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
