"""Write tables as TSV, CSV, JSONL or Parquet files, which `ailora.recipes.data.readers` reads back unchanged."""

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
#: Beginnings of cells that a spreadsheet runs as a formula, which may start a program.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def validate_output_suffix(file: Path) -> None:
    """Validate that a file's suffix is that of a format.

    Raises:
        InputError: The suffix is unknown.
    """
    if file.suffix not in _ENCODERS:
        raise InputError(f"{file}: the output ends in one of {', '.join(_ENCODERS)}")


def encode_frame(frame: pd.DataFrame, file: Path) -> bytes:
    """Encode a table in the format of a file's suffix.

    Args:
        frame: table.
        file: file that the table is for, which is not written.

    Returns:
        Content of the file.

    Raises:
        InputError: The format is unknown, or cannot hold a value of the table.
    """
    validate_output_suffix(file)
    return _ENCODERS[file.suffix](frame, file)


def write_frame(frame: pd.DataFrame, file: Path) -> None:
    """Write a table atomically, in the format of the file's suffix.

    Warns about cells of TSV and CSV files that a spreadsheet would run as formulas.

    Raises:
        InputError: The format is unknown or cannot hold a value of the table, or the file cannot be written.
    """
    content = encode_frame(frame, file)
    with writing(file):
        write_bytes(file, content)
    # Not escaped: the file is data, and an apostrophe before a label would make another label of it.
    if file.suffix in (".tsv", ".csv") and (count := sum(map(is_formula, _cells(frame)))):
        _LOG.warning(
            "%s: %s with =, +, - or @, which a spreadsheet runs as a formula: import the file as text",
            file,
            pluralize(count, "cell begins", "cells begin"),
        )


def escape_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with an apostrophe before each text that a spreadsheet would run as a formula."""
    return frame.map(lambda cell: f"'{cell}" if is_formula(cell) else cell)


def is_formula(value: object) -> bool:
    """Return whether a spreadsheet would run a cell as a formula."""
    return isinstance(value, str) and bool(_FORMULA.match(value)) and not _NUMBER.fullmatch(value)


def _encode_tsv(frame: pd.DataFrame, file: Path) -> bytes:
    # TSV is written and read without quoting, as GLUE's files are: nothing escapes a tab within a cell.
    lines = [[*map(_to_text, row)] for row in _rows(frame)]
    for number, line in enumerate(lines):
        for column, cell in zip(frame.columns, line, strict=True):
            if any(sign in cell for sign in "\t\n\r"):
                where = f"row {number - 1}, column {column!r}" if number else f"column {column!r}"
                raise InputError(
                    f"{file}: {where} holds a tab or the end of a line, which no cell of a .tsv can; choose .csv, "
                    ".jsonl or .parquet"
                )
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def _encode_csv(frame: pd.DataFrame, _file: Path) -> bytes:
    lines = [[*map(_to_text, row)] for row in _rows(frame)]
    # Python before 3.13 does not quote a lone carriage return, but reads it as the end of a line.
    carriage_return = any("\r" in cell for line in lines for cell in line)
    stream = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if carriage_return else csv.QUOTE_MINIMAL
    csv.writer(stream, lineterminator="\n", quoting=quoting).writerows(lines)
    return stream.getvalue().encode()


def _encode_jsonl(frame: pd.DataFrame, _file: Path) -> bytes:
    header, *rows = _rows(frame)
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


def _rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    yield tuple(map(str, frame.columns))
    yield from frame.itertuples(index=False, name=None)


def _cells(frame: pd.DataFrame) -> Iterable[object]:
    return (cell for row in _rows(frame) for cell in row)


def _to_text(value: object) -> str:
    """Format a cell: empty for a missing value, JSON on one line for lists and mappings."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    value = _to_plain(value)
    if value is None:
        return ""
    return _to_json(value) if isinstance(value, list | dict) else str(value)


def _to_json(value: object) -> str:
    return format_json(_to_plain(value), ascii_only=False)


def _to_plain(value: object) -> object:
    """Convert a cell to plain data of JSON; non-finite numbers and missing values of pandas become None."""
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
