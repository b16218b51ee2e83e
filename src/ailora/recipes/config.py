"""Configurations: YAML files and overrides, checked before anything is loaded."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pydantic
import yaml
from transformers import TrainingArguments

from ailora.adapters.plan import parse_form
from ailora.errors import InputError, unknown_name
from ailora.inits import PRESETS, parse_policy
from ailora.recipes.metrics import METRICS
from ailora.roles import parse_role

#: What `training:` starts from, where it differs from `transformers.TrainingArguments`.
TRAINING_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "logging_steps": 10,
    "per_device_eval_batch_size": 64,
    "report_to": "none",
    "save_total_limit": 2,
}
#: Training arguments that another key of the configuration, or the recipe itself, decides.
_OWNED = {"output_dir": "output", "do_train": "ailora train", "do_eval": "ailora train", "do_predict": "data.test"}


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class AdapterConfig(_Section):
    """`adapter:`. The fields of `make_plan`; `policy: full` trains the whole model without an adapter."""

    policy: str | dict[str, Any] = "ailora"
    rank: int | dict[str, int] = 8
    alpha: float | dict[str, float] | None = None
    roles: list[str] | None = None
    role_names: dict[str, str] | None = None
    form: str = "anchored"
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    modules_to_save: list[str] | None = None

    @property
    def full(self) -> bool:
        """Whether the whole model is trained instead of an adapter."""
        return self.policy == "full"

    def plan_options(self) -> dict[str, Any]:
        """What `adapt` takes: every field but the policy."""
        return self.model_dump(exclude={"policy"})


class DataConfig(_Section):
    """`data:`. Local files, or with `dataset` the splits of a data set that `datasets.load_dataset` finds.

    Attributes:
        train, validation, test: a path or a list of paths (TSV, CSV, JSONL, Parquet); with `dataset`, split names.
        dataset: hub id or local folder of a data set; None for files.
        subset: the data set's configuration name.
        columns: the column names of files without a header.
        text: one or two text columns.
        label: the label column.
        max_length: tokens after which a text is cut.
        max_train_samples, max_validation_samples: keep so many rows, chosen with a fixed seed, in their order.
    """

    train: str | list[str]
    validation: str | list[str]
    test: str | list[str] | None = None
    dataset: str | None = None
    subset: str | None = None
    columns: list[str] | None = None
    text: list[str] = pydantic.Field(min_length=1, max_length=2)
    label: str = "label"
    max_length: int = pydantic.Field(default=128, ge=1)
    max_train_samples: int | None = pydantic.Field(default=None, ge=1)
    max_validation_samples: int | None = pydantic.Field(default=None, ge=1)


class ClassificationConfig(_Section):
    """A run of the classification recipe.

    Attributes:
        recipe: `classification`.
        model: hub id, local folder, or `builtin:minilm`.
        adapter: what is trained.
        data: what it is trained on.
        metric: one or several names; the first decides what is best. `pearson` and `spearman` mean regression.
        training: any field of `transformers.TrainingArguments`.
        output: the run's folder.
    """

    recipe: Literal["classification"]
    model: str
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    metric: str | list[str] = "accuracy"
    training: dict[str, Any] = pydantic.Field(default_factory=dict)
    output: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics' names, the deciding one first."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be predicted instead of classes."""
        return METRICS[self.metrics[0]].regression


def load_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> ClassificationConfig:
    """Read, complete and check a configuration.

    Args:
        source: a YAML file, or its content. A key `task: cola` fills in `data` and `metric` from `recipes/tasks`.
        overrides: `dotted.key=value` with a YAML value, later ones win.

    Raises:
        InputError: a missing file, broken YAML, an unknown key, name or value, with what is allowed.
    """
    raw = _read_yaml(Path(source)) if isinstance(source, (str, Path)) else copy.deepcopy(dict(source))
    for override in overrides:
        _apply_override(raw, override)
    if (task := raw.pop("task", None)) is not None:
        raw = _merged(_task(task), raw)
    if "recipe" in raw and raw["recipe"] != "classification":
        raise unknown_name("recipe", raw["recipe"], ["classification"])
    try:
        config = ClassificationConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        raise _explain(error) from None
    return _checked(config)


def to_yaml(config: ClassificationConfig) -> str:
    """The whole resolved configuration; `ailora train` runs it again as it is."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def task_names() -> list[str]:
    """The tasks whose data come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in files("ailora.recipes.tasks").iterdir() if _is_yaml(file))


def _is_yaml(file: Any) -> bool:
    return file.name.endswith(".yaml")


def _task(name: str) -> dict[str, Any]:
    if name not in task_names():
        raise unknown_name("task", name, task_names())
    return yaml.load(files("ailora.recipes.tasks").joinpath(f"{name}.yaml").read_text(), _Loader)


def _merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, section by section."""
    merged = {**defaults, **given}
    for key in defaults.keys() & given.keys():
        if isinstance(defaults[key], dict) and isinstance(given[key], dict):
            merged[key] = {**defaults[key], **given[key]}
    return merged


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-3` as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"cannot read the configuration {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{file}: expected keys such as recipe, model, data; got {type(raw).__name__}")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} is not of the form dotted.key=value")
    place: Any = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        place[parent] = {} if place.get(parent) is None else place[parent]
        place = place[parent]
        if not isinstance(place, dict):
            raise InputError(f"override {override!r}: {parent!r} has no keys below it")
    try:
        place[leaf] = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: {value!r} is not a YAML value") from None


def _explain(error: pydantic.ValidationError) -> InputError:
    """The first thing that is wrong, in our words."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    section: Any = ClassificationConfig
    if first["type"] == "extra_forbidden":
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        where = f" in {'.'.join(path[:-1])}" if path[:-1] else ""
        return unknown_name(f"key{where}", path[-1], section.model_fields)
    given = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return InputError(f"configuration key {'.'.join(path)}: {first['msg'].lower()}{given}")


def _checked(config: ClassificationConfig) -> ClassificationConfig:
    """Check every name, and complete what is derived: training defaults and absolute paths."""
    if not config.metrics:
        raise InputError("metric is empty: name at least one of " + ", ".join(METRICS))
    for metric in config.metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if len({METRICS[m].regression for m in config.metrics}) != 1:
        raise InputError(f"metric {list(config.metrics)}: metrics of classification and of regression cannot be mixed")
    adapter = config.adapter
    if not adapter.full:
        _check_policy(adapter.policy)
        parse_form(adapter.form)
        for role in [*(adapter.roles or []), *(adapter.role_names or {}).values()]:
            parse_role(role)
    data = config.data
    if data.dataset is None:
        paths = {split: _absolute(getattr(data, split)) for split in ("train", "validation", "test")}
        data = data.model_copy(update=paths)
    model = Path(config.model).expanduser()
    update = {
        "data": data,
        "model": str(model.absolute()) if model.is_dir() else config.model,
        "output": str(Path(config.output).expanduser().absolute()),
        "training": _training(config.training),
    }
    return config.model_copy(update=update)


def _check_policy(policy: str | dict[str, Any]) -> None:
    if isinstance(policy, str) and policy not in PRESETS:
        raise unknown_name("policy", policy, [*PRESETS, "full"])
    parse_policy(policy)


def _absolute(paths: str | list[str] | None) -> str | list[str] | None:
    if paths is None or isinstance(paths, str):
        return paths and str(Path(paths).expanduser().absolute())
    return [str(Path(path).expanduser().absolute()) for path in paths]


def _training_value(key: str, value: Any) -> Any:
    """A training argument as its declared type: transformers itself would fail only when it uses the value.

    A bare `no` is False in YAML 1.1; under a strategy it means the word.
    """
    if value is False and key.endswith("_strategy"):
        value = "no"
    try:
        kind = pydantic.TypeAdapter(get_type_hints(TrainingArguments)[key], config={"arbitrary_types_allowed": True})
        return kind.validate_python(value, strict=False)
    except pydantic.ValidationError as error:
        raise InputError(f"training.{key}: {error.errors()[0]['msg'].lower()}, got {value!r}") from None


def _training(given: dict[str, Any]) -> dict[str, Any]:
    """The training arguments with our defaults; a save strategy that is not given follows the evaluations."""
    allowed = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key in given:
        if key in _OWNED:
            raise InputError(f"training.{key} cannot be set: it follows from {_OWNED[key]}")
        if key not in allowed:
            raise unknown_name("key in training", key, allowed)
    merged = {**TRAINING_DEFAULTS, **{key: _training_value(key, value) for key, value in given.items()}}
    if merged["eval_strategy"] != "steps" and "eval_steps" not in given:
        del merged["eval_steps"]
    for save, evaluate in (("save_strategy", "eval_strategy"), ("save_steps", "eval_steps")):
        if evaluate in merged:
            merged.setdefault(save, merged[evaluate])
    return merged
