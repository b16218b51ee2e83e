"""From tables to examples: texts and labels."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetsError

from ailora.errors import InputError
from ailora.recipes.config.schema import DataConfig, DataSource
from ailora.recipes.data.labels import Labels, is_missing
from ailora.recipes.data.readers import Table, read_tables

#: Which rows `max_train_samples` keeps does not depend on the run's seed: runs are compared on the same rows.
_CUT_SEED = 20251008


@dataclass(frozen=True)
class Examples:
    """Rows ready for tokenization.

    Attributes:
        texts: one or two texts per row.
        labels: the rows' labels as the file has them; None where the file has none.
        where: the origin of each row, for messages.
    """

    texts: list[tuple[str, ...]]
    labels: list[object] | None
    where: list[str]

    def encoded(self, labels: Labels) -> list[int | float]:
        """The labels as numbers.

        Raises:
            InputError: as `Labels.encode`; no labels at all.
        """
        if self.labels is None:
            raise InputError(f"{self.where[0]}: the data have no labels")
        return [labels.encode(value, place) for value, place in zip(self.labels, self.where, strict=True)]


def load_examples(data: DataConfig, split: str) -> Examples:
    """The examples of `train`, `validation` or `test`, cut to the configured number.

    Raises:
        InputError: missing or broken data, missing columns, rows without text or label.
    """
    examples = to_examples(read_split(data, split), data)
    kept = sample_indices(len(examples.texts), getattr(data, f"max_{split}_samples", None))
    labels = examples.labels and [examples.labels[i] for i in kept]
    return Examples([examples.texts[i] for i in kept], labels, [examples.where[i] for i in kept])


def read_split(data: DataSource, split: str, columns: Sequence[str] = ()) -> Table:
    """The table of `train`, `validation` or `test`.

    Args:
        data: which files or data set.
        split: the name of the split.
        columns: columns that are needed beside those that `data` names.

    Raises:
        InputError: missing or broken data.
    """
    source, named = getattr(data, split), {*data.named_columns, *columns}
    return (
        read_tables(source, data.columns, named=named) if data.dataset is None else _read_dataset(data, source, named)
    )


def sample_indices(count: int, limit: int | None) -> list[int]:
    """Which of `count` rows a limit keeps, in their order."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(_CUT_SEED).sample(range(count), limit))


def to_examples(table: Table, data: DataConfig, *, labelled: bool = True) -> Examples:
    """The text columns of a table and, if `labelled`, its label column.

    Raises:
        InputError: a missing column, a row without text or label.
    """
    texts = list(zip(*(table.column(name) for name in data.text), strict=True))
    for row, place in zip(texts, table.where, strict=True):
        if not all(isinstance(text, str) for text in row):
            raise InputError(f"{place}: the text columns {data.text} hold {row!r}, expected text")
    labels = table.column(data.label) if labelled else None
    for value, place in zip(labels or [], table.where, strict=False):
        if is_missing(value):
            raise InputError(f"{place}: the row has no label in column {data.label!r}")
    return Examples(texts, labels, table.where)


def _read_dataset(data: DataSource, split: str, named: Collection[str]) -> Table:
    try:
        loaded: Any = datasets.load_dataset(str(data.dataset), data.subset, split=split)
    # A data set with a script of its own, which is never run, is a RuntimeError.
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(f"cannot load split {split!r} of data set {data.dataset!r}: {error}") from error
    columns = tuple(loaded.column_names)
    # What is not needed may not be readable here: images, dates beyond the year 9999.
    name = f"{data.dataset}/{split}"
    values = [
        _column_values(loaded, column, name) if column in named else repeat(None, len(loaded)) for column in columns
    ]
    rows = list(zip(*values, strict=True))
    return Table(columns, rows, [f"{name}: row {i}" for i in range(len(rows))])


def _column_values(loaded: Dataset, column: str, name: str) -> list[object]:
    feature = loaded.features[column]
    try:
        if isinstance(feature, datasets.ClassLabel):
            return [feature.int2str(value) if value >= 0 else None for value in loaded[column]]
        return list(loaded[column])
    # Arrow holds more than Python does: dates beyond the year 9999, say; and a column may need a package to be decoded.
    except (OverflowError, ValueError, ImportError) as error:
        raise InputError(f"{name}: column {column!r} cannot be read ({error}): convert it to text") from None
