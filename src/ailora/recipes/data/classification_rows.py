"""Read the labelled texts of a data split."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetsError

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.recipes.config.schema import DataConfig, DataSource
from ailora.recipes.data.labels import Labels, is_missing
from ailora.recipes.data.readers import Table, read_tables

_LOG = logging.getLogger("ailora")
#: Independent of the run's seed, so that all methods and seeds use the same rows.
_SAMPLE_SEED = 20251008


@dataclass(frozen=True)
class Examples:
    """Texts of a split, with their labels.

    Attributes:
        texts: One or two texts per row.
        labels: Labels as stored in the file; None for unlabelled rows.
        origins: Position of each row for error messages, such as `file:line`; see `Table.origins`.
    """

    texts: list[tuple[str, ...]]
    labels: list[object] | None
    origins: list[str]

    def encode_labels(self, labels: Labels) -> list[int | float]:
        """Encode the labels as class ids, or as numbers for regression.

        Args:
            labels: Classes of the task, or numbers for regression.

        Returns:
            The encoded label of each row.

        Raises:
            InputError: The rows have no labels, or a label is invalid; see `Labels.encode`.
        """
        if self.labels is None:
            raise InputError(f"{self.origins[0]}: the data have no labels")
        return [labels.encode(value, origin) for value, origin in zip(self.labels, self.origins, strict=True)]

    def sample(self, limit: int | None) -> Examples:
        """Return a sample of at most `limit` rows, the same in every run; all rows if `limit` is None."""
        indices = sample_indices(len(self.texts), limit)
        labels = self.labels and [self.labels[i] for i in indices]
        return Examples([self.texts[i] for i in indices], labels, [self.origins[i] for i in indices])


def load_examples(data: DataConfig, split: str) -> Examples:
    """Load the examples of a split.

    Args:
        data: Files or dataset, and the columns of texts and labels.
        split: `train`, `validation` or `test`.

    Returns:
        A sample of `max_train_samples` or `max_validation_samples` rows if the key is set; otherwise, and for `test`,
        all rows.

    Raises:
        InputError: The data are missing or invalid, lack a column, or hold a row without text or label.
    """
    return load_all_examples(data, split).sample(data.max_samples(split))


def load_all_examples(data: DataConfig, split: str) -> Examples:
    """Load the examples of a split before sampling. See `load_examples`."""
    return to_examples(read_split(data, split), data)


def warn_shared_sources(data: DataSource) -> None:
    """Warn if `data.validation` or `data.test` names a file, or a dataset's split, that `data.train` names too."""
    training_sources = _find_sources(data, "train")
    # The first split is `train`.
    for split in data.splits[1:]:
        if shared := sorted(training_sources & _find_sources(data, split)):
            _LOG.warning(
                "data.%s and data.train both name %s: scores on rows of the training data do not show how well the "
                "model generalizes",
                split,
                ", ".join(shared),
            )


def _find_sources(data: DataSource, split: str) -> set[str]:
    """Return the paths of a split's files, with symbolic links resolved, or the name of a dataset's split."""
    source = getattr(data, split)
    names = [source] if isinstance(source, str) else source
    return set(names) if data.dataset is not None else {os.path.realpath(name) for name in names}


def read_split(data: DataSource, split: str, extra_columns: Sequence[str] = ()) -> Table:
    """Read the table of a split, for any recipe.

    Args:
        data: Files or dataset.
        split: `train`, `validation` or `test`.
        extra_columns: Columns to read in addition to those named by `data`.

    Returns:
        The table. Columns that are named neither by `data` nor by `extra_columns` may be filled with None.

    Raises:
        InputError: The data are missing or invalid.
    """
    source, named = getattr(data, split), {*data.named_columns, *extra_columns}
    if data.dataset is None:
        # `data.columns` are the column names of files without a header.
        return read_tables(source, data.columns, named=named)
    return _read_dataset(data, source, named)


def sample_indices(count: int, limit: int | None) -> list[int]:
    """Choose the rows of a sample.

    Args:
        count: Number of rows.
        limit: Size of the sample; None for all rows.

    Returns:
        Row numbers in ascending order, the same in every run.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(_SAMPLE_SEED).sample(range(count), limit))


def to_examples(table: Table, data: DataConfig, *, labelled: bool = True) -> Examples:
    """Extract texts and labels from a table.

    Args:
        table: Table with the text columns of `data`.
        data: Names of the columns.
        labelled: Whether to extract the label column.

    Returns:
        The examples.

    Raises:
        InputError: A column is missing, or a row has no text or label.
    """
    texts = list(zip(*(table.column(name) for name in data.text), strict=True))
    for row, origin in zip(texts, table.origins, strict=True):
        if not all(isinstance(text, str) for text in row):
            raise InputError(f"{origin}: the text columns {data.text} hold {shorten(repr(row), 500)}, expected text")
    labels = table.column(data.label) if labelled else None
    for value, origin in zip(labels or [], table.origins, strict=False):
        if is_missing(value):
            raise InputError(f"{origin}: the row has no label in column {data.label!r}")
    return Examples(texts, labels, table.origins)


def _read_dataset(data: DataSource, dataset_split: str, named: Collection[str]) -> Table:
    try:
        loaded: Any = datasets.load_dataset(str(data.dataset), data.subset, split=dataset_split)
    # datasets never runs loading scripts, and raises RuntimeError for a dataset with a script.
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(f"cannot load split {dataset_split!r} of dataset {data.dataset!r}: {error}") from error
    columns = tuple(loaded.column_names)
    origin = f"{data.dataset}/{dataset_split}"
    # Other columns are not read, because reading may fail: images without Pillow, dates beyond the year 9999.
    values = [
        _read_column(loaded, column, origin) if column in named else repeat(None, len(loaded)) for column in columns
    ]
    rows = list(zip(*values, strict=True))
    return Table(columns, rows, [f"{origin}: row {i}" for i in range(len(rows))])


def _read_column(loaded: Dataset, column: str, origin: str) -> list[object]:
    feature = loaded.features[column]
    try:
        if isinstance(feature, datasets.ClassLabel):
            # Datasets with secret test labels, such as GLUE, store -1 in place of the labels.
            return [None if value is None or value < 0 else feature.int2str(value) for value in loaded[column]]
        return list(loaded[column])
    # Python cannot represent all of Arrow's dates, and some columns need a package for decoding.
    except (OverflowError, ValueError, ImportError) as error:
        raise InputError(f"{origin}: column {column!r} cannot be read ({error}): convert it to text") from None
