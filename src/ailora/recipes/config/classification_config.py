"""Configuration schema of the classification recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from ailora.errors import InputError, unknown_name
from ailora.plan.task_type import TaskType
from ailora.recipes.config.sections import DataSource, RunConfig
from ailora.recipes.config.validation import Count, Text, field
from ailora.recipes.evaluation.classification_metrics import METRICS

#: Columns that `ailora predict` adds to the text columns.
_PREDICTION_COLUMNS = ("row", "prediction", "scores")


class DataConfig(DataSource, frozen=True):
    """Section `data:` of the classification recipe.

    Attributes:
        text: Names of one or two text columns.
        label: Name of the label column; default: `label`.
        max_length: Maximum number of tokens per row; longer rows are truncated; default: 128.
    """

    text: list[Text] = field("a list of one or two column names", min_length=1, max_length=2)
    label: Text = field("a column name", "label")
    max_length: Count = field("a whole number of at least 1", 128)

    @property
    def named_columns(self) -> set[str]:
        return {*self.text, self.label}


class ClassificationConfig(RunConfig, frozen=True):
    """Configuration of the classification recipe; `training` holds fields of `transformers.TrainingArguments`.

    Attributes:
        metric: Name or names of metrics; default: `accuracy`. The first metric selects the best learning rate of a
            study. `pearson` and `spearman` make the task a regression.
    """

    task_type: ClassVar[TaskType] = TaskType.SEQ_CLS

    recipe: Literal["classification"] = field("classification")
    data: DataConfig
    metric: str | list[str] = field("a metric name or a list of metric names", "accuracy")

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def scores(self) -> dict[str, bool]:
        # Larger values of all classification and regression metrics are better.
        return {**dict.fromkeys(self.metrics, True), "loss": False}

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return METRICS[self.metrics[0]].regression

    def check(self) -> None:
        _validate_metrics(self.metrics)
        _validate_columns(self.data)

    def check_training(self) -> None:
        if self.regression and self.training.get("label_smoothing_factor"):
            raise InputError(
                "training.label_smoothing_factor applies to classes, not to the numbers of a regression; remove "
                "training.label_smoothing_factor"
            )


def _validate_metrics(metrics: tuple[str, ...]) -> None:
    if not metrics:
        raise InputError("metric is empty: name at least one of " + ", ".join(METRICS))
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if len({METRICS[m].regression for m in metrics}) != 1:
        raise InputError(f"metric {list(metrics)}: classification metrics and regression metrics cannot be mixed")


def _validate_columns(data: DataConfig) -> None:
    if repeated := [name for name in data.text if data.text.count(name) > 1]:
        raise InputError(f"data.text names {repeated[0]!r} twice")
    if taken := [name for name in data.text if name in _PREDICTION_COLUMNS]:
        reserved = ", ".join(_PREDICTION_COLUMNS)
        raise InputError(
            f"data.text: {taken[0]!r} is reserved for the columns of predictions ({reserved}); rename the column in "
            "the data"
        )
    if data.label in data.text:
        raise InputError(f"data.label {data.label!r} is also in data.text; expected a different column")
