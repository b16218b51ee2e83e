"""Operations on analysis tables: select rows, and compute means and intervals of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

#: A row of a table, or a record of `analysis.json`: plain data.
Row = dict[str, Any]


def filter_rows(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Return the rows that hold the given values in the named columns, in the order of the table."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def mean_by(table: pd.DataFrame, key: str, column: str) -> pd.Series:
    """Average the finite values of a column for each value of `key`.

    Args:
        table: Table with both columns.
        key: Name of the column to group by.
        column: Name of a numeric column.

    Returns:
        Means, indexed and sorted by `key`. Keys without a finite value are left out.
    """
    finite = np.isfinite(table[column].to_numpy(dtype=float))
    return table.loc[finite].groupby(key)[column].mean()


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % t-interval of a mean, or NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half_width = float(stats.t.ppf(0.975, len(values) - 1)) * float(stats.sem(values))
    return float(np.mean(values)) - half_width, float(np.mean(values)) + half_width
