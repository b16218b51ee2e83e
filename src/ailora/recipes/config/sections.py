"""Configuration sections shared by all recipes: keys, types and allowed values."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pydantic
from transformers import TrainingArguments

from ailora.plan.task_type import TaskType
from ailora.recipes.config.method import FullFineTuning, Method, PeftInit, parse_method
from ailora.recipes.config.tune_section import TuneConfig
from ailora.recipes.config.validation import Count, Section, Text, field
from ailora.redaction import without_secrets

_Positive = Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)]
#: Parts of descriptions of allowed values, for error messages.
_PER_MODULE = ", or a mapping from role or regular expression to such numbers"
_SOURCE = "a file or a list of files; with data.dataset, the name of a split"
#: Keys of `adapter:` that do not apply to PEFT's inits.
AILORA_ADAPTER_KEYS = frozenset({"form", "couple_roles"})


class AdapterConfig(Section, frozen=True):
    """Section `adapter:`, with the options of `ailora.make_plan`.

    `policy: full` trains the model in full, and `policy: peft:NAME` selects an init of PEFT.
    `policy: package.module:function` selects a user's function, which interprets all other keys.

    Attributes:
        policy: Method: a preset, a mapping from role to init, or one of the values above; default: `ailora`.
        rank: Number, or mapping from role or regular expression to number; default: 8.
        alpha: Number, or mapping from role or regular expression to number; None sets alpha to the rank.
        roles: Roles to adapt; None for the roles of the policy, or for query and value if the policy has none.
        role_names: Regular expression for module names -> role.
        modules: Regular expression to search for in module names; only matching modules are adapted.
        form: `anchored`, `stock` or `residual`; default: `anchored`.
        dropout: Probability of dropping an entry of the adapter's input, in [0, 1); default: 0.0.
        rslora: Whether the scaling is alpha / sqrt(r) instead of alpha / r.
        dora: Whether to train magnitudes too (DoRA).
        modules_to_save: Modules to train in full; None for the newly initialized heads.
        couple_roles: Whether each adapter of a fused weight trains all rows of the weight.
        learning_rates: Multipliers of `training.learning_rate` by role, by factor (A, B), or by both.
    """

    policy: str | dict[str, Any] = field(
        "a preset's name, 'full', 'peft:NAME', 'package.module:function', or a mapping from role to init", "ailora"
    )
    rank: Count | dict[str, Count] = field(f"a whole number of at least 1{_PER_MODULE}", 8)
    alpha: _Positive | dict[str, _Positive] | None = field(f"a number above 0{_PER_MODULE}", None)
    roles: list[str] | None = field("a list of roles", None)
    role_names: dict[str, str] | None = field("a mapping from regular expression to role", None)
    modules: Text | None = field("a regular expression over module names", None)
    form: str = field("'anchored', 'stock' or 'residual'", "anchored")
    dropout: float = field("a number of at least 0 and below 1", 0.0, strict=True, ge=0, lt=1)
    rslora: bool = field("true or false", False, strict=True)
    dora: bool = field("true or false", False, strict=True)
    modules_to_save: list[str] | None = field("a list of module names", None)
    couple_roles: bool = field("true or false", False, strict=True)
    learning_rates: dict[str, _Positive | dict[str, _Positive]] | None = field(
        "multipliers above 0 of training.learning_rate: a mapping from role, A or B to a number, or from role to "
        "a mapping from A or B to a number",
        None,
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _drop_removed_keys(cls, raw: object) -> object:
        # Run folders of earlier versions contain `layer_replication`, which is null unless used.
        if isinstance(raw, dict) and raw.get("layer_replication", 0) is None:
            return {key: value for key, value in raw.items() if key != "layer_replication"}
        return raw

    @property
    def method(self) -> Method:
        """Training method, parsed from `policy`.

        Raises:
            InputError: The policy is unknown.
        """
        return parse_method(self.policy)

    def plan_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `ailora.make_plan`, except the policy."""
        # PEFT's inits adapt all rows of a fused weight, and support only the stock form.
        options = self.model_dump(exclude={"policy", "learning_rates"})
        return options | ({"form": "stock", "couple_roles": True} if isinstance(self.method, PeftInit) else {})

    @pydantic.model_serializer(mode="wrap")
    def _serialize(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialize only the keys that the method uses."""
        match self.method:
            case FullFineTuning():
                return {"policy": self.policy}
            case PeftInit():
                return {key: value for key, value in handler(self).items() if key not in AILORA_ADAPTER_KEYS}
            case _:
                return handler(self)


class DataSource(Section, frozen=True):
    """Source of a run's rows: files, or splits of a dataset from `datasets.load_dataset`.

    Attributes:
        train, validation, test: Path or list of paths (TSV, CSV, JSONL, JSON, Parquet), or name of a split.
        dataset: Hub id or local folder of a dataset; None for files.
        subset: Configuration name of the dataset.
        columns: Column names for files without a header.
        max_train_samples, max_validation_samples: Number of rows to sample with a fixed seed; None for all.
    """

    train: Text | list[Text] = field(_SOURCE)
    validation: Text | list[Text] = field(_SOURCE)
    test: Text | list[Text] | None = field(_SOURCE, None)
    dataset: Text | None = field("a hub id or a folder", None)
    subset: Text | None = field("the name of a configuration of data.dataset", None)
    columns: list[Text] | None = field("a list of column names", None)
    max_train_samples: Count | None = field("a whole number of at least 1", None)
    max_validation_samples: Count | None = field("a whole number of at least 1", None)

    @property
    def splits(self) -> list[str]:
        """Names of the configured splits."""
        return ["train", "validation", *(["test"] if self.test else [])]

    @property
    def named_columns(self) -> set[str]:
        """Names of the columns read by the recipe. Recipes with such columns override this property."""
        return set()

    def max_samples(self, split: str) -> int | None:
        """Return the number of rows to sample from a split; None for all rows."""
        return {"train": self.max_train_samples, "validation": self.max_validation_samples}.get(split)


class RunConfig(Section, frozen=True):
    """Configuration of a run, with the keys shared by all recipes. Recipes override the properties and checks.

    Attributes:
        recipe: Name of the recipe.
        model: Hub id, local folder, or `builtin:minilm`.
        quantization: Quantization of the base model on loading; None loads the weights as stored.
        adapter: Training method and adapter options.
        data: Source of training, validation and test rows.
        training: Fields of the recipe's training arguments and their values. Defaults that differ from those of
            transformers: `seed: 0`, `eval_strategy: steps`, `eval_steps: 0.1` (ten evaluations), `logging_steps: 10`,
            `per_device_eval_batch_size: 64` (8 for language models), `save_total_limit: 2`, `report_to: none`. A
            checkpoint is saved at each evaluation.
        on_nonfinite: Whether a non-finite loss or gradient ends the training, `stop` or `continue`; default: `stop`.
        tune: Settings of `ailora tune`; left out of dumps, because a run does not depend on these settings.
        output: Folder of the run.
    """

    #: Task type of the recipe's models.
    task_type: ClassVar[TaskType]
    #: Class of the training arguments, whose fields are keys of `training:`.
    arguments: ClassVar[type[TrainingArguments]] = TrainingArguments
    #: Defaults of `training:` for this recipe only.
    training_defaults: ClassVar[dict[str, Any]] = {}

    recipe: str = field("the name of a recipe")
    model: Text = field("a hub id, a folder, or 'builtin:minilm'")
    quantization: dict[str, Any] | None = field(
        "a mapping with fields of transformers.BitsAndBytesConfig, or torchao: CLASS with fields of the class", None
    )
    adapter: AdapterConfig = AdapterConfig()
    data: DataSource
    training: dict[str, Any] = field("fields of the recipe's training arguments", {})
    on_nonfinite: Literal["stop", "continue"] = field("'stop' or 'continue'", "stop")
    tune: TuneConfig = TuneConfig()
    output: Text = field("a folder")

    @pydantic.model_serializer(mode="wrap")
    def _serialize(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit secrets, because dumps are written to files. Omit `tune`, because a run does not depend on it."""
        return without_secrets({key: value for key, value in handler(self).items() if key != "tune"})

    @property
    def derived_training(self) -> dict[str, Any]:
        """Defaults of `training` for the hardware of this machine."""
        return {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics computed during training.

        With `load_best_model_at_end`, `training.metric_for_best_model` selects the best checkpoint; its default is the
        loss.
        """
        return ()

    @property
    def scores(self) -> dict[str, bool]:
        """Name of each score after training -> whether larger values are better; the first score ranks runs."""
        return {"loss": False}

    def check(self) -> None:
        """Validate names and combinations of keys.

        Raises:
            InputError: A name is unknown, or keys contradict each other.
        """

    def check_training(self) -> None:
        """Validate combinations of keys for a new run; finished runs may have combinations that are refused here.

        Raises:
            InputError: The recipe would ignore a key of `training`.
        """
