"""Configurations: YAML files and overrides, checked before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ailora.checkpoints.output_dir import resolve_output_path
from ailora.errors import InputError, unknown_name
from ailora.optim.param_groups import parse_multipliers
from ailora.plan.adapter_plan import parse_form
from ailora.recipes.baselines.custom_function import import_function
from ailora.recipes.baselines.peft_inits import validate_options
from ailora.recipes.config.method import CustomFunction, FullFineTuning, PeftInit
from ailora.recipes.config.quantization import quantization_config
from ailora.recipes.config.schema import AdapterConfig, DataSource, LanguageConfig, RunConfig, shown, validate
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml, read_yaml
from ailora.recipes.training.arguments import complete_training, validate_arguments
from ailora.redaction import mask_override
from ailora.roles import parse_role


def load_config(
    source: Path | str | Mapping[str, object], overrides: Sequence[str] = (), *, to_run: bool = True
) -> RunConfig:
    """Read, complete and check a configuration.

    Args:
        source: a YAML file, or its content. A key `task: cola` fills in `data` and `metric` from `recipes/tasks`.
        overrides: `dotted.key=value` with a YAML value, later ones win.
        to_run: whether it is to be run; else it is only looked at, and a method of the user's is not imported.

    Raises:
        InputError: a missing file, broken YAML, an unknown key, name or value, with what is allowed.
    """
    if isinstance(source, Mapping):
        return _load(copy.deepcopy(dict(source)), overrides, to_run=to_run)
    raw = read_yaml(Path(source))
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else shown(raw)
        raise InputError(f"{source}: expected keys such as recipe, model, data; got {found}")
    try:
        return _load(raw, overrides, to_run=to_run)
    except InputError as error:
        raise InputError(f"{source}{' with overrides' if overrides else ''}: {error}") from None


def _load(raw: dict[str, object], overrides: Sequence[str], *, to_run: bool) -> RunConfig:
    for override in overrides:
        apply_override(raw, override)
    # A section with nothing in it is not given.
    raw = {key: value for key, value in raw.items() if value is not None}
    if (task := raw.pop("task", None)) is not None:
        raw = _merge(_read_task(task), raw)
    config = _checked(validate(raw))
    if to_run:
        validate_arguments(config)
        if isinstance(method := config.adapter.method, CustomFunction):
            import_function(method)
    return config


def to_yaml(config: RunConfig) -> str:
    """The whole resolved configuration; `ailora train` runs it again as it is."""
    return format_yaml(config.model_dump())


def task_names() -> list[str]:
    """The tasks whose data come with the package."""
    names = [file.name for file in files("ailora.recipes.tasks").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _read_task(name: object) -> dict[str, object]:
    if name not in task_names():
        raise unknown_name("task", name, task_names())
    return parse_yaml(files("ailora.recipes.tasks").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def _merge(task: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """Lay a configuration over a task's, section by section."""
    merged = {**task, **given}
    for key, section in given.items():
        if isinstance(section, dict) and isinstance(defaults := task.get(key), dict):
            # The subset is one of the task's own data set.
            foreign = {"subset"} if "dataset" in section else set()
            merged[key] = {k: v for k, v in defaults.items() if k not in foreign} | section
    return merged


def apply_override(raw: dict[str, object], override: str) -> None:
    """Set a key of plain data by `dotted.key=value` with a YAML value, in place.

    Raises:
        InputError: another form, broken YAML, or a part of the key but the last that is no section.
    """
    key, equals, value = override.partition("=")
    shown_override = mask_override(override)
    if not equals or not key:
        raise InputError(f"override {shown_override} is not of the form dotted.key=value")
    try:
        set_dotted(raw, key, parse_yaml(value))
    except InputError as error:
        reason = error if shown_override == repr(override) else "its value is not YAML, or a part of its key no section"
        raise InputError(f"override {shown_override}: {reason}") from None


def set_dotted(raw: dict[str, object], key: str, value: object) -> None:
    """Set a dotted key of plain data, in place; sections that are not there are made.

    Raises:
        InputError: a part of the key but the last is no section.
    """
    section = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        below = section[parent]
        if not isinstance(below, dict):
            raise InputError(f"{parent!r} has no keys below it")
        section = below
    section[leaf] = value


def _checked(config: RunConfig) -> RunConfig:
    """Check every name, and complete what is derived: training defaults and absolute paths."""
    config.check()
    _check_adapter(config.adapter)
    _check_source(config.data)
    quantization_config(config)
    model = Path(config.model).expanduser()
    update: dict[str, object] = {
        "data": _located(config.data),
        "model": str(model.absolute()) if model.is_dir() else config.model,
        "output": str(_resolve_output(config.output)),
        "training": complete_training(config.training, config.metrics, config.arguments, config.training_defaults),
    }
    if isinstance(config, LanguageConfig):
        general = _absolute(config.evaluation.general_text)
        update["evaluation"] = config.evaluation.model_copy(update={"general_text": general})
    return config.model_copy(update=update)


def _resolve_output(output: str) -> Path:
    try:
        return resolve_output_path(output).absolute()
    except InputError as error:
        raise InputError(f"output: {error}") from None


def _check_adapter(adapter: AdapterConfig) -> None:
    method = adapter.method
    if isinstance(method, FullFineTuning):
        if unused := sorted(adapter.model_fields_set - {"policy"}):
            keys = ", ".join(f"adapter.{key}" for key in unused)
            raise InputError(f"adapter.policy {method} trains without an adapter: {keys} cannot be set beside it")
        return
    if isinstance(method, PeftInit):
        validate_options(method, adapter)
    parse_form(adapter.form)
    for role in [*(adapter.roles or []), *(adapter.role_names or {}).values()]:
        parse_role(role)
    parse_multipliers(adapter.learning_rates)


def _check_source(data: DataSource) -> None:
    names = data.columns or []
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"data.columns names {repeated[0]!r} twice")
    if data.dataset is not None and data.columns is not None:
        raise InputError("data.columns names the columns of files without a header: not with data.dataset")
    if data.dataset is None and data.subset is not None:
        raise InputError(f"data.subset {data.subset!r} is a part of a data set: name it in data.dataset")


def _located(data: DataSource) -> DataSource:
    """With absolute paths, where they are paths."""
    if data.dataset is not None:
        return data
    update = {split: _absolute(getattr(data, split)) for split in ("train", "validation", "test")}
    if (template := getattr(data, "chat_template", None)) and Path(template).expanduser().is_file():
        update["chat_template"] = _absolute(template)
    return data.model_copy(update=update)


def _absolute(paths: str | list[str] | None) -> str | list[str] | None:
    if paths is None or isinstance(paths, str):
        return paths and str(Path(paths).expanduser().absolute())
    return [str(Path(path).expanduser().absolute()) for path in paths]
