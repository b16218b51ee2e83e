"""Load, complete and validate configurations from YAML files and overrides."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ailora.checkpoints.output_path import resolve_output_path
from ailora.errors import InputError, unknown_name
from ailora.optim.param_groups import parse_multipliers
from ailora.path_kind import expand_home, is_file, is_folder
from ailora.plan.adapter_plan import compute_scaling, parse_form
from ailora.recipes.baselines.custom_function import import_function
from ailora.recipes.baselines.peft_inits import validate_options
from ailora.recipes.config.method import CustomFunction, FullFineTuning, PeftInit
from ailora.recipes.config.overrides import apply_override
from ailora.recipes.config.quantization import build_quantization_config
from ailora.recipes.config.schema import (
    AdapterConfig,
    DataSource,
    LanguageConfig,
    RunConfig,
    validate_config,
)
from ailora.recipes.config.validation import short_repr
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml, read_yaml
from ailora.recipes.training.argument_checks import JSON_FILE_ARGS, is_json_file
from ailora.recipes.training.arguments import complete_training, validate_arguments
from ailora.roles import parse_role


def load_config(
    source: Path | str | Mapping[str, object],
    overrides: Sequence[str] = (),
    *,
    to_run: bool = True,
    folder: Path | None = None,
) -> RunConfig:
    """Read, complete and validate a configuration.

    Args:
        source: YAML file, or its content. `task: NAME` fills in `data` and `metric` for a built-in task such as `cola`.
        overrides: Items `dotted.key=value` with YAML values; later items take precedence.
        to_run: Whether the configuration is for training. If False, the combination of training arguments is not
            validated, and a custom function is not imported.
        folder: Absolute folder to which relative input paths refer; None for the working folder. A relative `output`
            always refers to the working folder.

    Returns:
        The configuration, with all defaults and absolute paths.

    Raises:
        InputError: The file is missing or not YAML, or a key, name or value is invalid. The message lists the allowed
            values.
    """
    if isinstance(source, Mapping):
        # Copy, so that the configuration shares no list or mapping with the caller.
        return _load(copy.deepcopy(dict(source)), overrides, to_run=to_run, folder=folder)
    raw = read_yaml(Path(source))
    if not isinstance(raw, dict):
        content = "nothing" if raw is None else short_repr(raw)
        raise InputError(f"{source}: expected keys such as recipe, model, data; got {content}")
    try:
        return _load(raw, overrides, to_run=to_run, folder=folder)
    except InputError as error:
        raise InputError(f"{source}{' with overrides' if overrides else ''}: {error}") from None


def _load(raw: dict[str, object], overrides: Sequence[str], *, to_run: bool, folder: Path | None) -> RunConfig:
    for override in overrides:
        apply_override(raw, override)
    # In YAML, an empty section is null.
    raw = {key: value for key, value in raw.items() if value is not None}
    if (task := raw.pop("task", None)) is not None:
        raw = _merge_task(_read_task(task), raw)
    config = _complete(validate_config(raw), folder or Path())
    # A finished run stays readable without the libraries and functions that trained its model, and with keys that its
    # training ignored.
    if to_run:
        config.check_training()
        validate_arguments(config)
        if isinstance(method := config.adapter.method, CustomFunction):
            import_function(method)
    return config


def to_yaml(config: RunConfig) -> str:
    """Format a complete configuration as YAML for `ailora train`.

    Args:
        config: Configuration returned by `load_config`.

    Returns:
        YAML with all defaults, without secrets and without `tune`.
    """
    return format_yaml(config.model_dump())


def task_names() -> list[str]:
    """Return the sorted names of the built-in tasks."""
    names = [file.name for file in files("ailora.recipes.tasks").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _read_task(name: object) -> dict[str, object]:
    if name not in task_names():
        raise unknown_name("task", name, task_names())
    return parse_yaml(files("ailora.recipes.tasks").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def _merge_task(task: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """Update the configuration of a task with the given keys, section by section."""
    merged = {**task, **given}
    for key, section in given.items():
        if isinstance(section, dict) and isinstance(defaults := task.get(key), dict):
            # A different dataset does not have the subset of the task's dataset.
            dropped_keys = {"subset"} if "dataset" in section else set()
            merged[key] = {k: v for k, v in defaults.items() if k not in dropped_keys} | section
    return merged


def _complete(config: RunConfig, folder: Path) -> RunConfig:
    """Validate names, and fill in training defaults and absolute paths."""
    config.check()
    config.tune.check(config.metrics)
    _validate_adapter(config.adapter)
    _validate_source(config.data)
    # Only for its validation: the result is built again when the model is loaded.
    build_quantization_config(config)
    # Make paths absolute, so that a run can resume from any working directory.
    training = _resolve_json_files(config.training, folder)
    update: dict[str, object] = {
        "data": _resolve_data_paths(config.data, folder),
        "model": _resolve_folder(config.model, folder),
        "output": str(_resolve_output(config.output)),
        "training": complete_training(training, config.metrics, config.arguments, config.training_defaults),
    }
    if isinstance(config, LanguageConfig):
        general_text = _make_absolute(config.evaluation.general_text, folder)
        update["evaluation"] = config.evaluation.model_copy(update={"general_text": general_text})
    return config.model_copy(update=update)


def _resolve_folder(name: str, folder: Path) -> str:
    """Return the absolute path of a folder, or the name itself if there is no such folder, as for a hub id."""
    path = folder / expand_home(name)
    return str(path.absolute()) if is_folder(path) else name


def _resolve_output(output: str) -> Path:
    try:
        return resolve_output_path(output).absolute()
    except InputError as error:
        raise InputError(f"output: {error}") from None


def _validate_adapter(adapter: AdapterConfig) -> None:
    method = adapter.method
    if isinstance(method, FullFineTuning):
        if unused := sorted(adapter.model_fields_set - {"policy"}):
            keys = ", ".join(f"adapter.{key}" for key in unused)
            raise InputError(f"adapter.policy {method} trains without an adapter; remove {keys}")
        return
    if isinstance(method, PeftInit):
        validate_options(method, adapter)
    if not isinstance(method, CustomFunction):
        _validate_scaling(adapter)
    parse_form(adapter.form)
    for role in [*(adapter.roles or []), *(adapter.role_names or {}).values()]:
        parse_role(role)
    parse_multipliers(adapter.learning_rates)


def _validate_scaling(adapter: AdapterConfig) -> None:
    """Validate the scaling that each alpha gives, if `adapter.rank` is a number."""
    alphas = adapter.alpha.values() if isinstance(adapter.alpha, dict) else [adapter.alpha]
    for alpha in alphas:
        # Huge ranks would overflow a float here. The plan refuses them, with a message that names the weight.
        if isinstance(adapter.rank, int) and adapter.rank < 2**31 and alpha is not None:
            compute_scaling(adapter.rank, alpha, rslora=adapter.rslora, where=" in adapter.alpha")


def _validate_source(data: DataSource) -> None:
    names = data.columns or []
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"data.columns names {repeated[0]!r} twice")
    if data.dataset is not None and data.columns is not None:
        raise InputError("data.columns applies to files without a header, not to data.dataset; remove data.columns")
    if data.dataset is None and data.subset is not None:
        raise InputError(f"data.subset {data.subset!r} requires data.dataset, which is missing")
    for split in data.splits:
        if data.dataset is not None and not isinstance(source := getattr(data, split), str):
            raise InputError(
                f"data.{split} must be the name of one split of data.dataset, such as 'train' or 'train+test', got "
                f"{short_repr(source)}"
            )


def _resolve_data_paths(data: DataSource, folder: Path) -> DataSource:
    """Return a data section with absolute paths."""
    update: dict[str, object] = {}
    # The splits of a dataset are names, not paths. `data.dataset` stays as given, even if it is a folder, because
    # studies identify their trials by this value.
    if data.dataset is None:
        update |= {split: _make_absolute(getattr(data, split), folder) for split in ("train", "validation", "test")}
    if (template := getattr(data, "chat_template", None)) and is_file(folder / expand_home(template)):
        update["chat_template"] = _make_absolute(template, folder)
    return data.model_copy(update=update)


def _resolve_json_files(training: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a training section with absolute paths of JSON files."""
    return {
        key: _make_absolute(value, folder) if key in JSON_FILE_ARGS and is_json_file(value) else value
        for key, value in training.items()
    }


def _make_absolute(paths: str | list[str] | None, folder: Path) -> str | list[str] | None:
    if not paths:
        return paths
    if isinstance(paths, str):
        return str((folder / expand_home(paths)).absolute())
    return [str((folder / expand_home(path)).absolute()) for path in paths]
