"""Rows of tables as plain data, and their means."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

Row = dict[str, Any]


def rows_where(table: pd.DataFrame, **wanted: object) -> list[Row]:
    """The rows of a table with these values, in their order."""
    for column, value in wanted.items():
        table = table[table[column] == value]  # pyright: ignore[reportAssignmentType]
    return table.to_dict("records")  # pyright: ignore[reportReturnType]


def mean_of(rows: list[Row], column: str) -> float:
    """The mean of a column; NaN of no rows."""
    return sum(row[column] for row in rows) / len(rows) if rows else math.nan


def mean_by(rows: list[Row], key: str, column: str) -> dict[Any, float]:
    """The mean of a column for each value of another, in the order of the values; rows without a finite one aside."""
    groups: dict[Any, list[float]] = {}
    for row in rows:
        if math.isfinite(row[column]):
            groups.setdefault(row[key], []).append(row[column])
    return {value: sum(groups[value]) / len(groups[value]) for value in sorted(groups)}
