"""Validate training arguments that transformers refuses only during training, or never."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ailora.errors import InputError
from ailora.plain_data import read_json_object


class _Refusal(NamedTuple):
    """Reason to refuse an option, and a hint for users who need its effect."""

    reason: str
    hint: str


_RESUMES_DIFFERENTLY = "a resumed run would differ from an uninterrupted run, because"
#: Option that cannot be true -> reason and hint.
_REFUSED_OPTIONS = {
    "save_only_model": _Refusal(
        f"{_RESUMES_DIFFERENTLY} checkpoints would lack the optimizer's state",
        "To save disk space, lower training.save_total_limit, or set training.save_strategy to 'no'",
    ),
    "ignore_data_skip": _Refusal(
        f"{_RESUMES_DIFFERENTLY} training would repeat the first rows of the epoch",
        "Skipping the rows before a checkpoint takes little time",
    ),
    "auto_find_batch_size": _Refusal(
        "after running out of memory, training would start over from trained weights, with smaller batches",
        "`ailora train --dry-run` estimates the memory for training.per_device_train_batch_size",
    ),
    "dataloader_persistent_workers": _Refusal(
        f"{_RESUMES_DIFFERENTLY} its workers would draw different random numbers",
        "Starting workers in every epoch takes seconds",
    ),
    "dataloader_drop_last": _Refusal(
        "evaluations would also omit the last rows", "The last batch of an epoch may be smaller than the others"
    ),
    "enable_jit_checkpoint": _Refusal(
        "a run that receives SIGTERM would count as finished, with a half-trained model",
        "A killed run resumes from its last checkpoint: set training.save_steps",
    ),
    "logging_nan_inf_filter": _Refusal(
        "the log and the evaluations would omit losses that are not finite",
        "on_nonfinite decides whether training continues after such a loss",
    ),
}
#: Number of steps in the schedule built for validation. The learning rates of all steps are computed.
_SCHEDULE_STEPS = 1000
#: Training arguments whose value is a mapping or the path of a JSON file.
JSON_FILE_ARGS = ("deepspeed", "fsdp_config", "accelerator_config")


def validate_resumable(training: Mapping[str, Any]) -> None:
    """Refuse options that make a resumed run differ from an uninterrupted run, or distort results.

    Args:
        training: Section `training:`.

    Raises:
        InputError: Such an option is set.
    """
    for key, refusal in _REFUSED_OPTIONS.items():
        if training.get(key):
            raise InputError(f"training.{key} cannot be true: {refusal.reason}. {refusal.hint}")
    if training.get("dataloader_in_order") is False and training.get("dataloader_num_workers", 0) > 1:
        raise InputError(
            "training.dataloader_in_order cannot be false with several workers: every run would train on different "
            "batches"
        )


def validate_usable(training: Mapping[str, Any], arguments: TrainingArguments) -> None:
    """Validate training arguments by building a small optimizer, a learning-rate schedule and a data loader.

    Args:
        training: Section `training:`, with the keys for distributed training and precision.
        arguments: Arguments built from the section without these keys.

    Raises:
        InputError: The Trainer could not use a value, or the package for a value is missing.
    """
    for key in JSON_FILE_ARGS:
        _validate_json_file(key, training.get(key))
    _validate_accelerator(training.get("accelerator_config"))
    for key, package in (("deepspeed", "deepspeed"), ("use_liger_kernel", "liger_kernel")):
        if training.get(key) and find_spec(package) is None:
            raise InputError(f"training.{key} needs the package {package}, which is not installed")
    _validate_optimizer_and_schedule(arguments)
    _validate_loader(arguments)


def is_json_file(value: object) -> TypeGuard[str]:
    """Return whether a value of one of `JSON_FILE_ARGS` is the path of a file, not the content itself."""
    return isinstance(value, str) and not value.startswith("{")


def _validate_json_file(key: str, value: object) -> None:
    if is_json_file(value):
        try:
            read_json_object(Path(value))
        except InputError as error:
            raise InputError(f"training.{key}: expected a mapping or the path of a JSON file: {error}") from None


def _validate_accelerator(value: object) -> None:
    try:
        if isinstance(value, dict):
            AcceleratorConfig(**value)
        elif is_json_file(value):
            AcceleratorConfig.from_json_file(value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"training.accelerator_config: {error}") from None


def _validate_optimizer_and_schedule(arguments: TrainingArguments) -> None:
    model: Any = nn.Linear(2, 2)
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        # The toy model has none of the modules that `optim_target_modules` may name.
        if arguments.optim_target_modules is None and isinstance(optimizer_class, type):
            # The options of some optimizers, such as LOMO, contain the parameters or the model.
            parameters = options.pop("params", options.pop("model", model.parameters()))
            optimizer_class(parameters, **options)
    except Exception as error:
        # With `optim_target_modules`, only a missing package is certain to fail with the user's model too.
        if arguments.optim_target_modules is None or isinstance(error, ImportError):
            raise InputError(
                f"training.optim {OptimizerNames(arguments.optim).value}: {_format_first_line(error)}"
            ) from None
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
        # A schedule with unsuitable options may fail only at some steps.
        for lr_lambda in getattr(scheduler, "lr_lambdas", ()):
            for step in range(_SCHEDULE_STEPS):
                float(lr_lambda(step))
    except Exception as error:
        options_text = "" if kwargs is None else f" with lr_scheduler_kwargs {kwargs}"
        name = SchedulerType(arguments.lr_scheduler_type).value
        raise InputError(f"training.lr_scheduler_type {name}{options_text}: {_format_first_line(error)}") from None


def _validate_loader(arguments: TrainingArguments) -> None:
    # Building a data loader starts no processes: workers start with the first batch.
    try:
        DataLoader(
            range(1),  # type: ignore[arg-type]
            num_workers=arguments.dataloader_num_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            persistent_workers=arguments.dataloader_persistent_workers,
            multiprocessing_context=getattr(arguments, "dataloader_multiprocessing_context", None),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"training.dataloader_*: {_format_first_line(error)}") from None


def _format_first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
