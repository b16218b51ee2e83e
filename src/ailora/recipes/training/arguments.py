"""Section `training:`: fields of `transformers.TrainingArguments`, validated before a model is loaded.

Transformers accepts many values on which training fails later, or which stand for another value silently.
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
from ailora.redaction import mask_value, protect

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
#: Training arguments of the engine and its precision.
_ENGINE = ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config", "bf16", "fp16", "tf32")
_RECIPE = "what the recipe needs for its metrics"
#: Training arguments that follow from another key of the configuration, or from the recipe.
_OWNED = {
    "output_dir": "output",
    "do_train": "ailora train",
    "do_eval": "ailora train",
    "do_predict": "data.test",
    "resume_from_checkpoint": "what the output folder holds",
    **dict.fromkeys(("label_names", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"), _RECIPE),
    "eval_do_concat_batches": _RECIPE,
    "model_init_kwargs": "model and quantization",
    "trust_remote_code": "the model's own code, which is never run",
    "chat_template_path": "data.chat_template",
    "dataset_text_field": "data.text",
    **dict.fromkeys(("dataset_kwargs", "dataset_num_proc", "truncation_mode"), "how the recipe prepares rows"),
    **dict.fromkeys(("eos_token", "pad_token"), "the tokenizer"),
    "predict_with_generate": "evaluation.generate",
    **dict.fromkeys(("generation_max_length", "generation_num_beams", "generation_config"), "evaluation.generate"),
}
#: Former names in transformers -> present names.
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
    dict: "a mapping",
    NoneType: "null",
}


#: Types of fields whose declared type is too wide or too narrow.
_HINTS: dict[str, Any] = {
    # Without eval_steps the Trainer would take logging_steps, and the saves that follow would have none.
    "eval_steps": float,
    "fsdp": bool | str | None,
}


class _Limit(NamedTuple):
    """Condition on the values of a field beyond their type, and its description."""

    holds: Callable[[Any], bool]
    words: str


_FROM_0 = _Limit(lambda value: value >= 0, "at least 0")
_FROM_1 = _Limit(lambda value: value >= 1, "at least 1")
_BELOW_1 = _Limit(lambda value: 0 <= value < 1, "at least 0 and below 1")
_STEPS = _Limit(
    lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
    "a whole number of steps from 1, or a share of all steps between 0 and 1",
)
# NumPy's generators take no larger seed.
_SEED = _Limit(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
#: Each worker is a process that imports torch.
_MAX_WORKERS = 256
#: TRL refuses others only after the model is loaded.
_PACKING = ("bfd", "bfd_split", "wrapped")
_LOSSES = ("nll", "dft")
_LIMITS = {
    "max_steps": _Limit(lambda value: value == -1 or value >= 1, "at least 1, or -1 for num_train_epochs"),
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
        lambda value: value == "auto" or (isinstance(value, int) and value >= 1), "auto or a whole number from 1"
    ),
    "packing_strategy": _Limit(lambda value: value in _PACKING, f"one of {', '.join(_PACKING)}"),
    "loss_type": _Limit(lambda value: value in _LOSSES, f"one of {', '.join(_LOSSES)}"),
}


def build_arguments(config: RunConfig, output_dir: Path) -> TrainingArguments:
    """Build the arguments of the trainer.

    Args:
        config: Configuration of the run.
        output_dir: Folder of the checkpoints.

    Returns:
        Arguments of the configuration's class, such as `trl.SFTConfig`.

    Raises:
        InputError: transformers refuses a value, or FSDP would train otherwise than configured.
    """
    # Pinned memory is for an accelerator: torch warns where there is none. Anchors are the same on all ranks from the
    # start, when DDP compares them: sending them again each step would only cost.
    accelerator = torch.accelerator.is_available()
    arguments = _construct(
        config.arguments,
        config,
        output_dir=str(output_dir),
        dataloader_pin_memory=accelerator,
        # Without `use_cpu`, processes that have no accelerator do not join a group, and each trains alone.
        use_cpu=not accelerator,
        ddp_broadcast_buffers=False,
        label_names=["labels"],
        # The filter logs the mean of the previous losses in the place of a NaN.
        logging_nan_inf_filter=False,
    )
    if arguments.fsdp:
        validate_sharding(arguments)
    return arguments


def validate_arguments(config: RunConfig) -> None:
    """Validate the training arguments by building them without device and launcher.

    Args:
        config: Configuration of the run.

    Raises:
        InputError: transformers refuses a value, or the Trainer could not use it.
    """
    # Constructing the arguments sets the device up, with which the ranks of a launcher would already join a group.
    validate_resumable(config.training)
    offline = type(config.arguments.__name__, (config.arguments,), {"_setup_devices": torch.device("cpu")})
    validate_usable(config.training, _construct(offline, without_distributed_args(config), output_dir="", use_cpu=True))


def _construct(kind: type[TrainingArguments], config: RunConfig, **defaults: object) -> TrainingArguments:
    derived: dict[str, Any] = {"data_seed": config.training["seed"], **defaults, **config.derived_training}
    try:
        return kind(**derived | protect(config.training))
    except (ValueError, TypeError) as error:
        raise InputError(f"training: {error}") from error


def without_distributed_args(config: ConfigT) -> ConfigT:
    """Copy a configuration without the engine and the precision of training, to use the run in one process.

    Args:
        config: Configuration of a run.

    Returns:
        The copy.
    """
    training = {key: value for key, value in config.training.items() if key not in _ENGINE}
    return config.model_copy(update={"training": training})


def validate_sharding(arguments: TrainingArguments) -> None:
    """Refuse FSDP where training would be otherwise than configured.

    Args:
        arguments: Arguments with `fsdp`.

    Raises:
        InputError: There is no accelerator or launcher, or FSDP's own activation checkpointing is on, with which
            checkpoints hold empty adapters.
    """
    state = arguments.distributed_state
    if state is None or state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise InputError("training.fsdp needs an accelerator and a launcher: accelerate would leave it out silently")
    if isinstance(arguments.fsdp_config, dict) and arguments.fsdp_config.get("activation_checkpointing"):
        raise InputError(
            "training.fsdp_config.activation_checkpointing renames layers, so that checkpoints hold empty adapters: "
            "set training.activation_checkpointing instead"
        )


def complete_training(
    given: dict[str, Any],
    metrics: Sequence[str],
    arguments: type[TrainingArguments] = TrainingArguments,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Complete `training:` with our defaults, and validate each value.

    Without a save strategy, checkpoints are saved where evaluations are.

    Args:
        given: Mapping of `training:`.
        metrics: Names of the run's metrics, any of which, and `loss`, may select the best checkpoint.
        arguments: Class whose fields are allowed.
        defaults: Defaults of the recipe, which take precedence over ours.

    Returns:
        The completed mapping.

    Raises:
        InputError: A key is unknown or follows from another section, or a value is out of range.
    """
    allowed = [field.name for field in dataclasses.fields(arguments) if field.init]
    given = {**{new: given[old] for old, new in _RENAMED.items() if old in given}, **given}
    given = {key: value for key, value in given.items() if key not in _RENAMED}
    for key in given:
        if key in _OWNED:
            raise InputError(f"training.{key} cannot be set: it follows from {_OWNED[key]}")
        if key not in allowed:
            raise unknown_name("key in training", key, allowed)
    merged = {
        **TRAINING_DEFAULTS,
        **defaults,
        **{key: _validate_value(key, value, arguments) for key, value in given.items()},
    }
    if merged["eval_strategy"] != "steps" and "eval_steps" not in given:
        del merged["eval_steps"]
    for save, evaluate in (("save_strategy", "eval_strategy"), ("save_steps", "eval_steps")):
        if evaluate in merged:
            merged.setdefault(save, merged[evaluate])
    _validate_combinations(merged, metrics)
    return merged


def _validate_value(key: str, value: object, arguments: type[TrainingArguments]) -> object:
    """Convert a training argument to its declared type, within its limits."""
    hint = _HINTS.get(key) or get_type_hints(arguments)[key]
    typed = _convert(key, value, hint)
    if isinstance(typed, float) and not math.isfinite(typed):
        raise InputError(f"training.{key}: expected a finite number, got {mask_value(key, value)}")
    limit = _LIMITS.get(key)
    if limit and typed is not None and not limit.holds(typed):
        raise InputError(f"training.{key}: expected {limit.words}, got {mask_value(key, value)}")
    return typed


def _convert(key: str, value: object, hint: Any) -> object:
    kinds = get_args(hint) or (hint,)
    for kind in kinds:
        # The other branch of the type is any text; transformers would refuse it, with the name of a class.
        if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
            words = [str(member.value) for member in kind]
            if value not in words:
                raise unknown_name(f"training.{key}", value, words)
    expected = " or ".join(dict.fromkeys(word for kind in kinds if (word := _KINDS.get(get_origin(kind) or kind))))
    wrong = InputError(f"training.{key}: expected {expected}, got {mask_value(key, value)}")
    # pydantic would read `learning_rate: true` as 1.
    if isinstance(value, bool) and {int, float} & set(kinds) and bool not in kinds:
        raise wrong
    try:
        return pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError:
        raise wrong from None


def _validate_combinations(training: dict[str, Any], metrics: Sequence[str]) -> None:
    """Validate values that depend on other keys, or on installed packages."""
    epochs = training.get("num_train_epochs", 1)
    if training.get("max_steps", -1) == -1 and epochs <= 0:
        raise InputError(f"training.num_train_epochs: expected more than 0 where max_steps is not set, got {epochs!r}")
    # It saves where the metric improved, from where a killed run could not resume.
    if training.get("save_strategy") == "best":
        raise InputError("training.save_strategy: 'best' cannot be continued after a kill; allowed: no, steps, epoch")
    deciding = training.get("metric_for_best_model")
    allowed = [*metrics, "loss"]
    if deciding is not None and str(deciding).removeprefix("eval_") not in allowed:
        raise unknown_name("training.metric_for_best_model", deciding, allowed)
    _validate_report_to(training["report_to"])


def _validate_report_to(report_to: str | list[str] | None) -> None:
    if report_to in (None, "none", "all", ["none"], ["all"]):
        return
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        try:
            get_reporting_integration_callbacks([name])
        except ValueError as error:
            raise InputError(f"training.report_to: {str(error).rstrip('.')}; or none, or all") from None
        # transformers does not list flyte, installed or not.
        if name not in (*get_available_reporting_integrations(), "flyte"):
            raise InputError(f"training.report_to: the package of {name!r} is not installed")
