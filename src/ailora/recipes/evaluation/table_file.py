"""Write tables as TSV, CSV, JSONL or Parquet files. `ailora.recipes.data.readers` reads the same values back."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from ailora.atomic_io import format_json, write_bytes
from ailora.checkpoints.output_path import writing
from ailora.errors import InputError
from ailora.formatting import pluralize

_LOG = logging.getLogger("ailora")
#: First character of cells that a spreadsheet evaluates as formulas, which can start programs.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def validate_output_suffix(file: Path) -> None:
    """Validate that the suffix of a file is one of the supported formats.

    Raises:
        InputError: The suffix is unknown.
    """
    if file.suffix not in _ENCODERS:
        raise InputError(f"{file}: expected an output file that ends in one of {', '.join(_ENCODERS)}")


def encode_frame(frame: pd.DataFrame, file: Path) -> bytes:
    """Encode a table in the format given by the suffix of a file.

    Args:
        frame: Table to encode.
        file: File in which the caller will store the table.

    Returns:
        Content of the file.

    Raises:
        InputError: The suffix is unknown, or the format cannot represent a value in the table.
    """
    validate_output_suffix(file)
    return _ENCODERS[file.suffix](frame, file)


def write_frame(frame: pd.DataFrame, file: Path) -> None:
    """Write a table atomically, in the format given by the suffix of the file.

    Log a warning if a spreadsheet would evaluate cells of a TSV or CSV file as formulas.

    Raises:
        InputError: The suffix is unknown, the format cannot represent a value in the table, or the file cannot be
            written.
    """
    content = encode_frame(frame, file)
    with writing(file):
        write_bytes(file, content)
    # Cells are not escaped, because programs read the file: an apostrophe would change a label.
    if file.suffix in (".tsv", ".csv") and (count := sum(map(is_formula, _iter_cells(frame)))):
        _LOG.warning(
            "%s: %s with =, +, - or @, which a spreadsheet evaluates as a formula: import the file as text",
            file,
            pluralize(count, "cell begins", "cells begin"),
        )


def escape_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with an apostrophe before each cell that a spreadsheet would evaluate as a formula."""
    return frame.map(lambda cell: f"'{cell}" if is_formula(cell) else cell)


def is_formula(value: object) -> bool:
    """Return whether a spreadsheet would evaluate a cell as a formula."""
    return isinstance(value, str) and bool(_FORMULA.match(value)) and not _NUMBER.fullmatch(value)


def _encode_tsv(frame: pd.DataFrame, file: Path) -> bytes:
    # TSV files are written without quoting, as in GLUE, so a tab in a cell cannot be escaped.
    lines = [[*map(_to_text, row)] for row in _iter_rows(frame)]
    for number, line in enumerate(lines):
        for column, cell in zip(frame.columns, line, strict=True):
            if any(character in cell for character in "\t\n\r"):
                where = f"row {number - 1}, column {column!r}" if number else f"column {column!r}"
                raise InputError(
                    f"{file}: {where} contains a tab or a line break, which .tsv cannot represent; choose .csv, "
                    ".jsonl or .parquet"
                )
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def _encode_csv(frame: pd.DataFrame, _file: Path) -> bytes:
    lines = [[*map(_to_text, row)] for row in _iter_rows(frame)]
    # Before Python 3.13, the csv module writes a lone carriage return without quotes, and reads it as a line break.
    has_carriage_return = any("\r" in cell for line in lines for cell in line)
    stream = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if has_carriage_return else csv.QUOTE_MINIMAL
    csv.writer(stream, lineterminator="\n", quoting=quoting).writerows(lines)
    return stream.getvalue().encode()


def _encode_jsonl(frame: pd.DataFrame, _file: Path) -> bytes:
    header, *rows = _iter_rows(frame)
    return "".join(_to_json(dict(zip(header, row, strict=True))) + "\n" for row in rows).encode()


def _encode_parquet(frame: pd.DataFrame, file: Path) -> bytes:
    stream = io.BytesIO()
    try:
        frame.to_parquet(stream, index=False)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: Parquet cannot hold this table ({reason}); choose .jsonl") from None
    return stream.getvalue()


_ENCODERS: dict[str, Callable[[pd.DataFrame, Path], bytes]] = {
    ".tsv": _encode_tsv,
    ".csv": _encode_csv,
    ".jsonl": _encode_jsonl,
    ".parquet": _encode_parquet,
}


def _iter_rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    yield tuple(map(str, frame.columns))
    yield from frame.itertuples(index=False, name=None)


def _iter_cells(frame: pd.DataFrame) -> Iterable[object]:
    return (cell for row in _iter_rows(frame) for cell in row)


def _to_text(value: object) -> str:
    """Format a cell: a missing value as an empty string, lists and mappings as JSON on a single line."""
    # Unlike JSON, text can represent an infinite number.
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    value = _to_plain(value)
    if value is None:
        return ""
    return _to_json(value) if isinstance(value, list | dict) else str(value)


def _to_json(value: object) -> str:
    return format_json(_to_plain(value), ascii_only=False)


def _to_plain(value: object) -> object:
    """Convert a cell to JSON types; non-finite numbers and pandas' missing values become None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    return value if isinstance(value, str | int) else str(value)
