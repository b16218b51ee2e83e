"""Read data files as tables, with the file and line of each row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.path_kind import is_file, is_folder
from ailora.plain_data import parse_json, read_text, split_json_lines

#: Limit on the characters in a CSV field: the largest number that a C `long` holds on every platform. Long texts exceed
#: Python's default limit of 131,072.
_MAX_FIELD_CHARS = 2**31 - 1
_FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
_JSON_FORMATS = (".jsonl", ".json")
_JSON_LAYOUT_HINT = "; a .json file holds a list of objects, a single object, or an object per line"


@dataclass(frozen=True)
class Table:
    """Rows with named columns.

    Attributes:
        columns: Names of the columns.
        rows: Values of each row, in the order of `columns`.
        origins: Position of each row, for error messages: `file:line`, `file: record n` in a JSON list, or
            `file: row n` in a Parquet file.
    """

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    origins: list[str]

    def column(self, name: str) -> list[object]:
        """Return the values of a column.

        Args:
            name: Name of the column.

        Returns:
            The value in each row.

        Raises:
            InputError: The table has no such column.
        """
        if name not in self.columns:
            source = self.origins[0].rpartition(":")[0] if self.origins else "the table"
            raise InputError(f"{source} has no column {name!r}; the columns are {', '.join(self.columns)}")
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def records(self) -> Iterator[tuple[dict[str, object], str]]:
        """Yield each row as a dict by column, with the row's origin."""
        for row, origin in zip(self.rows, self.origins, strict=True):
            yield dict(zip(self.columns, row, strict=True)), origin


def read_tables(
    paths: str | Sequence[str], columns: Sequence[str] | None = None, *, named: Collection[str] | None = None
) -> Table:
    """Read files into one table. All files except JSON files must have equal columns.

    Quotation marks are ordinary characters in TSV files, as in GLUE's files, and quote fields in CSV files. JSONL files
    hold an object per line. JSON files hold an object per line, a list of objects, or a single object.

    Args:
        paths: Files ending in .tsv, .csv, .jsonl, .json or .parquet.
        columns: Column names for TSV and CSV files without a header line.
        named: Columns to read from Parquet files; other columns are filled with None. If None, read all columns.

    Returns:
        The rows of all files, in the order of the files; None where a JSON object lacks a key, or where a file lacks a
        column of a JSON file.

    Raises:
        InputError: A file is missing, empty or invalid (the message names the line), or the columns of two files that
            are not JSON differ.
    """
    names = [paths] if isinstance(paths, str) else list(paths)
    if not names:
        raise InputError("expected at least one data file, got an empty list")
    tables = [_read(Path(name), columns, named) for name in names]
    for name, table in zip(names, tables, strict=True):
        if not table.rows:
            raise InputError(f"{name} holds no rows")
    all_columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    # JSON objects may omit keys, so only the columns of other files must be equal.
    columns_by_file = {
        name: table.columns for name, table in zip(names, tables, strict=True) if not _is_json(Path(name))
    }
    for name, file_columns in columns_by_file.items():
        first_name, first_columns = next(iter(columns_by_file.items()))
        if file_columns != first_columns:
            raise InputError(f"{name} has the columns {file_columns}, but {first_name} has {first_columns}")
    rows = [row for table in tables for row in _align_columns(table, all_columns)]
    return Table(all_columns, rows, [origin for table in tables for origin in table.origins])


def _is_json(file: Path) -> bool:
    return file.suffix in _JSON_FORMATS


def _align_columns(table: Table, columns: tuple[str, ...]) -> list[tuple[object, ...]]:
    if table.columns == columns:
        return table.rows
    return [tuple(map(record.get, columns)) for record, _ in table.records()]


def _read(file: Path, columns: Sequence[str] | None, named: Collection[str] | None) -> Table:
    if is_folder(file):
        raise InputError(f"{file} is a folder; expected a file or a list of files, or a folder as data.dataset")
    if file.suffix not in _FORMATS:
        raise InputError(f"{file}: the name of a data file must end in one of {', '.join(_FORMATS)}")
    if not is_file(file):
        raise InputError(f"{shorten(str(file), 500)}: no such file")
    try:
        if file.suffix == ".parquet":
            return _read_parquet(file, named)
        text = read_text(file)
        if _is_json(file):
            return _build_table(list(_parse_json_records(file, text)))
        with _allowing_long_fields():
            return _read_separated(file, io.StringIO(text, newline=""), columns)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


@contextmanager
def _allowing_long_fields() -> Generator[None, None, None]:
    """Raise the limit on the length of CSV fields during a `with` block."""
    # The limit is global: restore the value for other readers in the process.
    limit = csv.field_size_limit(_MAX_FIELD_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _validate_unique(columns: Sequence[str], origin: str) -> None:
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{origin}: duplicate column {repeated[0]!r}")


def _read_separated(file: Path, lines: Iterator[str], columns: Sequence[str] | None) -> Table:
    is_tsv = file.suffix == ".tsv"
    # GLUE's TSV files contain unpaired quotation marks; with quoting, the reader would join the following lines.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(lines, strict=True)
    header = tuple(columns) if columns else None
    rows, origins = [], []
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = tuple(fields)
                _validate_unique(header, f"{file}:{reader.line_num}")
            elif len(fields) != len(header):
                separators = "tabs" if is_tsv else "commas"
                raise InputError(
                    f"{file}:{reader.line_num}: {len(fields)} fields separated by {separators}, expected "
                    f"{len(header)}: {', '.join(header)}"
                )
            elif columns and not rows and tuple(fields) == header:
                # If the header line were read as a row, it would add a class, or a text to train on.
                raise InputError(
                    f"{file}:{reader.line_num}: the first line is a header ({', '.join(header)}), but data.columns "
                    "says that files have none; remove the line from the file, or data.columns from the configuration "
                    "of a new run"
                )
            else:
                rows.append(tuple(fields))
                # A quoted field may span lines, so the origin is the last line of the row.
                origins.append(f"{file}:{reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}") from None
    return Table(header or (), rows, origins)


def _parse_json_records(file: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        for origin, record in _parse_json_values(file, text):
            if not isinstance(record, dict):
                raise InputError(f"{origin}: expected an object, got {type(record).__name__}")
            yield origin, record
    except InputError as error:
        raise InputError(f"{error}{_JSON_LAYOUT_HINT if file.suffix == '.json' else ''}") from None


def _parse_json_values(file: Path, text: str) -> Iterator[tuple[str, object]]:
    if file.suffix == ".jsonl" or _is_json_lines(text):
        for origin, line in split_json_lines(text, file):
            yield origin, parse_json(line, origin)
    elif isinstance(value := parse_json(text, file), list):
        # The files of Alpaca and ShareGPT hold a single list.
        for number, record in enumerate(value):
            yield f"{file}: record {number}", record
    else:
        yield f"{file}:1", value


def _is_json_lines(text: str) -> bool:
    """Return whether the text of a JSON file holds an object per line: more text follows the first object."""
    text = text.lstrip()
    if not text.startswith("{"):
        # An empty file counts as JSON Lines without rows. Otherwise, the parser would report a syntax error.
        return not text
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return bool(text[end:].strip())


def _build_table(records: list[tuple[str, dict[str, object]]]) -> Table:
    columns = tuple(dict.fromkeys(key for _, record in records for key in record))
    rows = [tuple(map(record.get, columns)) for _, record in records]
    return Table(columns, rows, [origin for origin, _ in records])


def _read_parquet(file: Path, named: Collection[str] | None) -> Table:
    try:
        _validate_unique(pyarrow.parquet.read_schema(file).names, str(file))
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: not a Parquet file: {error}") from None
    columns = [
        _read_column(file, name, column) if named is None or name in named else repeat(None, table.num_rows)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    rows = list(zip(*columns, strict=True))
    return Table(tuple(table.column_names), rows, [f"{file}: row {i}" for i in range(len(rows))])


def _read_column(file: Path, name: str, column: pyarrow.ChunkedArray) -> list[object]:
    try:
        return column.to_pylist()
    # Python cannot represent all Arrow values, such as dates beyond the year 9999, unknown time zones and nanoseconds.
    except (OverflowError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{file}: column {name!r} ({column.type}) has a value that Python cannot hold ({error}): leave the column "
            "out, or convert it to text"
        ) from None
