"""Section `training:`: fields of `transformers.TrainingArguments`, validated before a model is loaded.

Without this validation, some values would only fail during training, and others would silently be interpreted as
something else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import pydantic
import torch
from accelerate import DistributedType
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from ailora.errors import InputError, unknown_name
from ailora.recipes.config.sections import RunConfig
from ailora.recipes.training.argument_checks import validate_resumable, validate_usable
from ailora.redaction import mask_value, wrap_secrets

ConfigT = TypeVar("ConfigT", bound=RunConfig)

#: Defaults of `training:` that differ from those of `transformers.TrainingArguments`.
TRAINING_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "logging_steps": 10,
    "per_device_eval_batch_size": 64,
    "report_to": "none",
    "save_total_limit": 2,
}
#: Training arguments for distributed training and precision.
_HARDWARE_ARGS = frozenset(
    ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config", "bf16", "fp16", "tf32")
)
_RECIPE_METRICS = "the metrics of the recipe determine it"
_RECIPE_DATA = "the recipe's data preparation determines it"
#: Training arguments that cannot be set, with the reason.
_NOT_SETTABLE = {
    "output_dir": "it is set by `output`",
    "do_train": "`ailora train` always trains",
    "do_eval": "`ailora train` always evaluates",
    "do_predict": "it is set by `data.test`",
    "resume_from_checkpoint": "it is set by the checkpoints in the output folder",
    **dict.fromkeys(
        ("label_names", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches"),
        _RECIPE_METRICS,
    ),
    "model_init_kwargs": "it is set by `model` and `quantization`",
    "trust_remote_code": "code from model repositories is never run",
    "chat_template_path": "it is set by `data.chat_template`",
    "dataset_text_field": "it is set by `data.text`",
    **dict.fromkeys(("dataset_kwargs", "dataset_num_proc", "truncation_mode"), _RECIPE_DATA),
    **dict.fromkeys(("eos_token", "pad_token"), "it is set by the tokenizer"),
    **dict.fromkeys(
        ("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"),
        "it is set by `evaluation.generate`",
    ),
}
#: Former names in transformers -> present names.
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

#: Types as error messages describe them.
_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list of strings",
    dict: "a mapping",
    NoneType: "null",
}


#: Types that replace the declared type of a field, if the latter accepts too much or refuses valid values.
_HINTS: dict[str, Any] = {
    # With eval_steps: null, the Trainer would use logging_steps, but save_steps could not be derived.
    "eval_steps": float,
    # The declared type is `str | None`, but transformers also accepts booleans.
    "fsdp": bool | str | None,
}


class _Limit(NamedTuple):
    """Condition on a value in addition to its type, and the description of the condition in errors."""

    holds: Callable[[Any], bool]
    words: str


_FROM_0 = _Limit(lambda value: value >= 0, "at least 0")
_FROM_1 = _Limit(lambda value: value >= 1, "at least 1")
_BELOW_1 = _Limit(lambda value: 0 <= value < 1, "at least 0 and below 1")
_STEPS = _Limit(
    lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
    "a whole number of at least 1 (steps), or a fraction between 0 and 1 (of all steps)",
)
# NumPy's generators refuse larger seeds.
_SEED = _Limit(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
#: Maximum number of worker processes. Each imports torch, so a mistyped number could exhaust the memory.
_MAX_WORKERS = 256
#: Values that TRL supports. TRL itself refuses others only after the model is loaded.
_PACKING_STRATEGIES = ("bfd", "bfd_split", "wrapped")
_LOSS_TYPES = ("nll", "dft")
_LIMITS = {
    "max_steps": _Limit(lambda value: value == -1 or value >= 1, "at least 1, or -1 to use num_train_epochs"),
    **dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), _STEPS),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(("label_smoothing_factor", "adam_beta1", "adam_beta2"), _BELOW_1),
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "eval_accumulation_steps",
            "dataloader_prefetch_factor",
            "ddp_timeout",
            "ddp_bucket_cap_mb",
            "max_length",
            "torch_empty_cache_steps",
        ),
        _FROM_1,
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "weight_decay",
            "adam_epsilon",
            "max_grad_norm",
            "warmup_steps",
            "eval_delay",
            "save_total_limit",
            "neftune_noise_alpha",
            "router_aux_loss_coef",
        ),
        _FROM_0,
    ),
    "dataloader_num_workers": _Limit(lambda value: 0 <= value <= _MAX_WORKERS, f"from 0 to {_MAX_WORKERS} processes"),
    "pad_to_multiple_of": _Limit(
        lambda value: value == "auto" or (isinstance(value, int) and value >= 1),
        "'auto' or a whole number of at least 1",
    ),
    "packing_strategy": _Limit(lambda value: value in _PACKING_STRATEGIES, f"one of {', '.join(_PACKING_STRATEGIES)}"),
    "loss_type": _Limit(lambda value: value in _LOSS_TYPES, f"one of {', '.join(_LOSS_TYPES)}"),
}


def build_arguments(config: RunConfig, output_dir: Path) -> TrainingArguments:
    """Build the arguments of the Trainer.

    Args:
        config: Configuration of the run.
        output_dir: Folder for the checkpoints.

    Returns:
        Arguments, as an instance of the recipe's class `config.arguments`, such as `trl.SFTConfig`.

    Raises:
        InputError: transformers refuses a value, or FSDP would not train as configured.
    """
    has_accelerator = torch.accelerator.is_available()
    arguments = _construct_arguments(
        config.arguments,
        config,
        output_dir=str(output_dir),
        # Pinning memory speeds up copies to an accelerator; without an accelerator, torch warns.
        dataloader_pin_memory=has_accelerator,
        # Without `use_cpu`, processes that have no accelerator do not join a group, and each trains alone.
        use_cpu=not has_accelerator,
        # The buffers are anchors, which never change: broadcasting them in every step would only waste time.
        ddp_broadcast_buffers=False,
        label_names=["labels"],
        # The filter would replace a NaN in the log by the mean of the previous losses.
        logging_nan_inf_filter=False,
    )
    if arguments.fsdp:
        validate_sharding(arguments)
    return arguments


def validate_arguments(config: RunConfig) -> None:
    """Validate the training arguments by building them without devices and process groups.

    Args:
        config: Configuration of the run.

    Raises:
        InputError: transformers refuses a value, or the Trainer could not use a value.
    """
    validate_resumable(config.training)
    # Constructing the arguments initializes the device and, under a launcher, the process group. The override prevents
    # both.
    deviceless_class = type(config.arguments.__name__, (config.arguments,), {"_setup_devices": torch.device("cpu")})
    portable = without_distributed_args(config)
    validate_usable(config.training, _construct_arguments(deviceless_class, portable, output_dir="", use_cpu=True))


def _construct_arguments(
    arguments_class: type[TrainingArguments], config: RunConfig, **defaults: object
) -> TrainingArguments:
    derived: dict[str, Any] = {"data_seed": config.training["seed"], **defaults, **config.derived_training}
    try:
        return arguments_class(**derived | wrap_secrets(config.training))
    except (ValueError, TypeError) as error:
        raise InputError(f"training: {error}") from error


def without_distributed_args(config: ConfigT) -> ConfigT:
    """Copy a configuration without the arguments for distributed training and precision.

    A finished run can then be used in a single process on any device.

    Args:
        config: Configuration of a run.

    Returns:
        The copy.
    """
    training = {key: value for key, value in config.training.items() if key not in _HARDWARE_ARGS}
    return config.model_copy(update={"training": training})


def validate_sharding(arguments: TrainingArguments) -> None:
    """Refuse FSDP where training would silently differ from the configuration.

    Args:
        arguments: Arguments with `fsdp`.

    Raises:
        InputError: There is no accelerator or launcher, or `fsdp_config` enables activation checkpointing, which would
            leave the adapters in checkpoints empty.
    """
    state = arguments.distributed_state
    if state is None or state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise InputError(
            "training.fsdp needs an accelerator and a launcher such as torchrun: without them, accelerate silently "
            "ignores the setting"
        )
    if isinstance(arguments.fsdp_config, dict) and arguments.fsdp_config.get("activation_checkpointing"):
        raise InputError(
            "training.fsdp_config.activation_checkpointing would leave the adapters in checkpoints empty, because it "
            "renames layers: set training.activation_checkpointing instead"
        )


def complete_training(
    given: dict[str, Any],
    metrics: Sequence[str],
    arguments_class: type[TrainingArguments] = TrainingArguments,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Validate each value in `training:`, and fill in defaults.

    By default, a checkpoint is saved at each evaluation.

    Args:
        given: Section `training:` as configured.
        metrics: Names of the run's metrics. The best checkpoint may be selected by any of these, or by `loss`.
        arguments_class: Class whose fields are allowed.
        defaults: Defaults of the recipe, which take precedence over `TRAINING_DEFAULTS`.

    Returns:
        The completed section.

    Raises:
        InputError: A key is unknown or cannot be set, or a value has a wrong type or is out of range.
    """
    allowed = [field.name for field in dataclasses.fields(arguments_class) if field.init]
    renamed = {new: given[old] for old, new in _RENAMED.items() if old in given}
    for old, new in _RENAMED.items():
        if old in given and new in given:
            raise InputError(f"training.{old} is the former name of training.{new}: give only training.{new}")
    given = renamed | {key: value for key, value in given.items() if key not in _RENAMED}
    for key in given:
        if key in _NOT_SETTABLE:
            raise InputError(f"training.{key} cannot be set: {_NOT_SETTABLE[key]}")
        if key not in allowed:
            raise unknown_name("key in training", key, allowed)
    merged = {
        **TRAINING_DEFAULTS,
        **defaults,
        **{key: _validate_value(key, value, arguments_class) for key, value in given.items()},
    }
    if merged["eval_strategy"] != "steps" and "eval_steps" not in given:
        del merged["eval_steps"]
    for save_key, eval_key in (("save_strategy", "eval_strategy"), ("save_steps", "eval_steps")):
        if eval_key in merged:
            merged.setdefault(save_key, merged[eval_key])
    _validate_combinations(merged, metrics)
    return merged


def _validate_value(key: str, value: object, arguments_class: type[TrainingArguments]) -> object:
    """Convert a training argument to its declared type, and validate its limits."""
    hint = _HINTS.get(key) or get_type_hints(arguments_class)[key]
    typed = _convert(key, value, hint)
    if isinstance(typed, float) and not math.isfinite(typed):
        raise InputError(f"training.{key}: expected a finite number, got {mask_value(key, value)}")
    limit = _LIMITS.get(key)
    if limit and typed is not None and not limit.holds(typed):
        raise InputError(f"training.{key}: expected {limit.words}, got {mask_value(key, value)}")
    return typed


def _convert(key: str, value: object, hint: Any) -> object:
    """Convert a value to the type of a hint.

    Raises:
        InputError: The value does not have this type. The message names the key.
    """
    types = get_args(hint) or (hint,)
    for kind in types:
        # A hint such as `IntervalStrategy | str` accepts any string; transformers then refuses an invalid one without
        # naming the key.
        if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
            choices = [str(member.value) for member in kind]
            if value not in choices:
                raise unknown_name(f"training.{key}", value, choices)
    words = [_TYPE_WORDS.get(get_origin(kind) or kind) for kind in types]
    expected = " or ".join(dict.fromkeys(word for word in words if word))
    error = InputError(f"training.{key}: expected {expected}, got {mask_value(key, value)}")
    # pydantic would read `learning_rate: true` as 1.
    if isinstance(value, bool) and {int, float} & set(types) and bool not in types:
        raise error
    try:
        return pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError:
        raise error from None


def _validate_combinations(training: dict[str, Any], metrics: Sequence[str]) -> None:
    """Validate combinations of values, and check that required packages are installed."""
    epochs = training.get("num_train_epochs", 1)
    if training.get("max_steps", -1) == -1 and epochs <= 0:
        raise InputError(f"training.num_train_epochs: expected more than 0, or max_steps to be set, got {epochs!r}")
    # 'best' saves only when the metric improves, so that a killed run may have an old checkpoint or none.
    if training.get("save_strategy") == "best":
        raise InputError(
            "training.save_strategy: expected 'no', 'steps' or 'epoch', got 'best', which may leave a killed run "
            "without a recent checkpoint"
        )
    best_metric = training.get("metric_for_best_model")
    allowed = [*metrics, "loss"]
    if best_metric is not None and str(best_metric).removeprefix("eval_") not in allowed:
        raise unknown_name("training.metric_for_best_model", best_metric, allowed)
    _validate_report_to(training["report_to"])


def _validate_report_to(report_to: str | list[str] | None) -> None:
    if report_to in (None, "none", "all", ["none"], ["all"]):
        return
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        try:
            get_reporting_integration_callbacks([name])
        except ValueError as error:
            raise InputError(
                f"training.report_to: {str(error).rstrip('.')}; 'none' and 'all' are also allowed"
            ) from None
        # transformers omits flyte from this list even if flyte is installed.
        if name not in (*get_available_reporting_integrations(), "flyte"):
            raise InputError(f"training.report_to: {name!r} needs a package that is not installed")
