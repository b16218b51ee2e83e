"""The sections of a configuration: their keys, and what each of them may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from ailora.errors import InputError, unknown_name
from ailora.recipes.metrics import METRICS

# Strict: pydantic would read `true` as 1 and "no" as a boolean. Each field's description says what is allowed.
_Text = Annotated[str, pydantic.Field(min_length=1)]
_Count = Annotated[int, pydantic.Field(strict=True, ge=1)]
_Alpha = Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)]
_Range = Annotated[list[Annotated[int, pydantic.Field(strict=True, ge=0)]], pydantic.Field(min_length=2, max_length=2)]
_PER_MODULE = ", or one per role or regular expression"
_SOURCE = "a file, a list of files, or with data.dataset the name of a split"


def _field(allowed: str, default: Any = ..., **limits: Any) -> Any:
    return pydantic.Field(default=default, description=allowed, **limits)


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class AdapterConfig(_Section):
    """`adapter:`. The fields of `make_plan`; `policy: full` trains the whole model without an adapter."""

    policy: str | dict[str, Any] = _field("a preset's name, full, or a mapping from role to init", "ailora")
    rank: _Count | dict[str, _Count] = _field(f"a whole number from 1{_PER_MODULE}", 8)
    alpha: _Alpha | dict[str, _Alpha] | None = _field(f"a number above 0{_PER_MODULE}", None)
    roles: list[str] | None = _field("a list of roles", None)
    role_names: dict[str, str] | None = _field("a mapping from regular expression to role", None)
    modules: _Text | None = _field("a regular expression over module names", None)
    form: str = _field("anchored, stock or residual", "anchored")
    dropout: float = _field("a number from 0 and below 1", 0.0, strict=True, ge=0, lt=1)
    rslora: bool = _field("true or false", False, strict=True)
    dora: bool = _field("true or false", False, strict=True)
    modules_to_save: list[str] | None = _field("a list of module names", None)
    couple_roles: bool = _field("true or false", False, strict=True)
    layer_replication: list[_Range] | None = _field("a list of ranges [start, stop] of layers", None)

    @property
    def full(self) -> bool:
        """Whether the whole model is trained instead of an adapter."""
        return self.policy == "full"

    def plan_options(self) -> dict[str, Any]:
        """What `adapt` takes: every field but the policy."""
        return self.model_dump(exclude={"policy"})

    @pydantic.model_serializer(mode="wrap")
    def _as_given(self, fields: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that full fine-tuning does not have, which would be refused when they are read again."""
        return {"policy": self.policy} if self.full else fields(self)


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

    train: _Text | list[_Text] = _field(_SOURCE)
    validation: _Text | list[_Text] = _field(_SOURCE)
    test: _Text | list[_Text] | None = _field(_SOURCE, None)
    dataset: _Text | None = _field("a hub id or a folder", None)
    subset: _Text | None = _field("the name of a configuration of data.dataset", None)
    columns: list[_Text] | None = _field("a list of column names", None)
    text: list[_Text] = _field("a list of one or two column names", min_length=1, max_length=2)
    label: _Text = _field("a column name", "label")
    max_length: _Count = _field("a whole number from 1", 128)
    max_train_samples: _Count | None = _field("a whole number from 1", None)
    max_validation_samples: _Count | None = _field("a whole number from 1", None)


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

    recipe: Literal["classification"] = _field("classification")
    model: _Text = _field("a hub id, a folder, or builtin:minilm")
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    metric: str | list[str] = _field("a metric's name or a list of names", "accuracy")
    training: dict[str, Any] = _field("fields of transformers.TrainingArguments", {})
    output: _Text = _field("a folder")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics' names, the deciding one first."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be predicted instead of classes."""
        return METRICS[self.metrics[0]].regression


def validate(raw: dict[str, Any]) -> ClassificationConfig:
    """The configuration that plain data stand for; names and paths are not looked up yet.

    Raises:
        InputError: an unknown key, a missing one, or a value of another kind, with what is allowed.
    """
    try:
        return ClassificationConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        raise _explain(error, raw) from None


def _explain(error: pydantic.ValidationError, raw: Any) -> InputError:
    """The first thing that is wrong, in our words: the key and what its field's description allows."""
    first = error.errors()[0]
    section: type[pydantic.BaseModel] = ClassificationConfig
    path: list[str] = []
    allowed = ""
    for part in map(str, first["loc"]):
        if part not in section.model_fields:
            return unknown_name("key" + (f" in {'.'.join(path)}" if path else ""), part, section.model_fields)
        path.append(part)
        raw = raw.get(part)
        field = section.model_fields[part]
        # What follows in the location is pydantic's: which branch of a union, which item.
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, _Section)):
            allowed = field.description or ""
            break
        section = field.annotation
        allowed = "a section with keys of " + ", ".join(section.model_fields)
    found = "is missing" if first["type"] == "missing" else f"is {shown(raw)}"
    return InputError(f"configuration key {'.'.join(path)} {found}; expected {allowed}")


def shown(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
