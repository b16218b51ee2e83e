"""Sections that every recipe has: their keys, and what each of them may hold."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pydantic
from transformers import TrainingArguments

from ailora.plan.task_type import TaskType
from ailora.recipes.config.method import FullFineTuning, Method, PeftInit, parse_method
from ailora.redaction import without_secrets

# Strict: pydantic would read `true` as 1 and "no" as a boolean. Each field's description says what is allowed.
Text = Annotated[str, pydantic.Field(min_length=1)]
Count = Annotated[int, pydantic.Field(strict=True, ge=1)]
_Alpha = Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)]
_Multiplier = _Alpha
_PER_MODULE = ", or one per role or regular expression"
#: Keys of `adapter:` that only adapters of ours have.
OWN_ADAPTER_KEYS = frozenset({"form", "couple_roles"})
_SOURCE = "a file, a list of files, or with data.dataset the name of a split"


def field(allowed: str, default: Any = ..., **limits: Any) -> Any:
    """A field; what it may hold is said in the words that an error message uses."""
    return pydantic.Field(default=default, description=allowed, **limits)


class Section(pydantic.BaseModel, extra="forbid", frozen=True):
    """A mapping in the configuration, without keys that nobody knows."""


class AdapterConfig(Section, frozen=True):
    """`adapter:`. The fields of `make_plan`.

    `policy: full` trains the whole model without an adapter; `policy: peft:NAME` is an init of PEFT's own, and
    `policy: package.module:function` a method of the user's, which decides itself what it makes of the other fields.
    """

    policy: str | dict[str, Any] = field(
        "a preset's name, full, peft:NAME, package.module:function, or a mapping from role to init", "ailora"
    )
    rank: Count | dict[str, Count] = field(f"a whole number from 1{_PER_MODULE}", 8)
    alpha: _Alpha | dict[str, _Alpha] | None = field(f"a number above 0{_PER_MODULE}", None)
    roles: list[str] | None = field("a list of roles", None)
    role_names: dict[str, str] | None = field("a mapping from regular expression to role", None)
    modules: Text | None = field("a regular expression over module names", None)
    form: str = field("anchored, stock or residual", "anchored")
    dropout: float = field("a number from 0 and below 1", 0.0, strict=True, ge=0, lt=1)
    rslora: bool = field("true or false", False, strict=True)
    dora: bool = field("true or false", False, strict=True)
    modules_to_save: list[str] | None = field("a list of module names", None)
    couple_roles: bool = field("true or false", False, strict=True)
    learning_rates: dict[str, _Multiplier | dict[str, _Multiplier]] | None = field(
        "multipliers of training.learning_rate, numbers above 0, by role, A or B, or by A and B below a role", None
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_removed_keys(cls, raw: Any) -> Any:
        """Configurations of earlier versions hold `layer_replication`, null unless it was used."""
        if isinstance(raw, dict) and raw.get("layer_replication", 0) is None:
            return {key: value for key, value in raw.items() if key != "layer_replication"}
        return raw

    @property
    def method(self) -> Method:
        """The training method that `policy` names.

        Raises:
            InputError: the name is unknown.
        """
        return parse_method(self.policy)

    def plan_options(self) -> dict[str, Any]:
        """Options of `make_plan` beside the policy. PEFT trains all rows of a weight."""
        options = self.model_dump(exclude={"policy", "learning_rates"})
        return options | ({"form": "stock", "couple_roles": True} if isinstance(self.method, PeftInit) else {})

    @pydantic.model_serializer(mode="wrap")
    def _serialize(self, fields: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that the method does not have."""
        match self.method:
            case FullFineTuning():
                return {"policy": self.policy}
            case PeftInit():
                return {key: value for key, value in fields(self).items() if key not in OWN_ADAPTER_KEYS}
            case _:
                return fields(self)


class DataSource(Section, frozen=True):
    """Where the rows of a run come from: files, or with `dataset` the splits that `datasets.load_dataset` finds.

    Attributes:
        train, validation, test: a path or a list of paths (TSV, CSV, JSONL, JSON, Parquet); or names of splits.
        dataset: hub id or local folder of a data set; None for files.
        subset: the data set's configuration name.
        columns: the column names of files without a header.
        max_train_samples, max_validation_samples: keep so many rows, chosen with a fixed seed, in their order.
    """

    train: Text | list[Text] = field(_SOURCE)
    validation: Text | list[Text] = field(_SOURCE)
    test: Text | list[Text] | None = field(_SOURCE, None)
    dataset: Text | None = field("a hub id or a folder", None)
    subset: Text | None = field("the name of a configuration of data.dataset", None)
    columns: list[Text] | None = field("a list of column names", None)
    max_train_samples: Count | None = field("a whole number from 1", None)
    max_validation_samples: Count | None = field("a whole number from 1", None)

    @property
    def splits(self) -> list[str]:
        """The names of the splits that are given."""
        return ["train", "validation", *(["test"] if self.test else [])]

    @property
    def named_columns(self) -> set[str]:
        """The columns whose values are read."""
        return set()


class RunConfig(Section, frozen=True):
    """What the configuration of every run holds.

    Attributes:
        recipe: the kind of task.
        model: hub id, local folder, or `builtin:minilm`.
        quantization: how the base model is quantized on loading; None: as it is stored.
        adapter: what is trained.
        data: what it is trained on.
        training: any field of the recipe's training arguments.
        on_nonfinite: whether training stops at the first step whose loss or gradient is not finite.
        output: the run's folder.
    """

    #: What the recipe's models are made for.
    task_type: ClassVar[TaskType]
    #: What `training:` holds the fields of.
    arguments: ClassVar[type[TrainingArguments]] = TrainingArguments
    #: Where the recipe starts from other values than every recipe does.
    training_defaults: ClassVar[dict[str, Any]] = {}

    recipe: str = field("the name of a recipe")
    model: Text = field("a hub id, a folder, or builtin:minilm")
    quantization: dict[str, Any] | None = field(
        "a mapping: fields of transformers.BitsAndBytesConfig, or torchao: the name of a class, and its fields", None
    )
    adapter: AdapterConfig = AdapterConfig()
    data: DataSource
    training: dict[str, Any] = field("fields of the recipe's training arguments", {})
    on_nonfinite: Literal["stop", "continue"] = field("stop or continue", "stop")
    output: Text = field("a folder")

    @pydantic.model_serializer(mode="wrap")
    def _serialize(self, fields: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out secrets: what is dumped is written to files."""
        return without_secrets(fields(self))

    @property
    def derived_training(self) -> dict[str, Any]:
        """Training arguments that the recipe sets, unless `training` does."""
        return {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that every evaluation during training computes beside the loss, the deciding one first."""
        return ()

    @property
    def scores(self) -> dict[str, bool]:
        """What is measured of every split at the end -> whether larger is better; the deciding one first."""
        return {"loss": False}

    def check(self) -> None:
        """Refuse names that do not exist and keys that do not go together.

        Raises:
            InputError: what is wrong, with what is allowed.
        """
