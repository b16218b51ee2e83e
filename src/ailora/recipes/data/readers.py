"""Local files as tables that remember where each row came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ailora.errors import InputError
from ailora.plain_data import parse_json, read_text, split_json_lines

#: The largest length that every C compiler's `long` holds; Python's own limit of a field is 131072 characters.
_LONGEST_FIELD = 2**31 - 1
_FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
_JSON_FORMATS = (".jsonl", ".json")
_JSON_FORMS = "; a .json file holds one list of objects, one object, or an object a line"


@dataclass(frozen=True)
class Table:
    """Rows with named columns.

    Attributes:
        columns: the column names.
        rows: one tuple of values per row.
        where: `file:line` (files of text) or `file: row n` of each row, for messages.
    """

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    where: list[str]

    def column(self, name: str) -> list[object]:
        """The values of one column.

        Raises:
            InputError: there is no such column.
        """
        if name not in self.columns:
            source = self.where[0].rpartition(":")[0] if self.where else "the table"
            raise InputError(f"{source} has no column {name!r}; it has: {', '.join(self.columns)}")
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def records(self) -> Iterator[tuple[dict[str, object], str]]:
        """Each row's values by column, and its origin."""
        for row, place in zip(self.rows, self.where, strict=True):
            yield dict(zip(self.columns, row, strict=True)), place


def read_tables(
    paths: str | Sequence[str], columns: Sequence[str] | None = None, *, named: Collection[str] | None = None
) -> Table:
    """Read one file or several with the same columns, one after the other.

    TSV files are read as GLUE's are, without quoting; CSV files with it. JSONL holds an object a line; a file of JSON
    holds that, or one list of objects, or one object, which is one row. Keys that only some objects have are columns
    that hold None in the other rows.

    Args:
        paths: files ending in .tsv, .csv, .jsonl (.json) or .parquet.
        columns: the names of the columns of TSV and CSV files that have no header line.
        named: the columns whose values are needed: others of Parquet files are not converted, and hold None.

    Raises:
        InputError: a file that is missing, empty, broken (file and line named), or has other columns than the first.
    """
    names = [paths] if isinstance(paths, str) else list(paths)
    if not names:
        raise InputError("an empty list of data files")
    tables = [_read(Path(name), columns, named) for name in names]
    for name, table in zip(names, tables, strict=True):
        if not table.rows:
            raise InputError(f"{name} holds no rows")
    shared = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    for name, table in zip(names, tables, strict=True):
        # Keys of JSON are optional.
        if table.columns != tables[0].columns and Path(name).suffix not in _JSON_FORMATS and shared != table.columns:
            raise InputError(f"{name} has the columns {table.columns}, but {names[0]} has {tables[0].columns}")
    rows = [row for table in tables for row in _with_columns(table, shared)]
    return Table(shared, rows, [place for table in tables for place in table.where])


def _with_columns(table: Table, columns: tuple[str, ...]) -> list[tuple[object, ...]]:
    if table.columns == columns:
        return table.rows
    return [tuple(map(record.get, columns)) for record, _ in table.records()]


def _read(file: Path, columns: Sequence[str] | None, named: Collection[str] | None) -> Table:
    if file.is_dir():
        raise InputError(f"{file} is a folder; give a file, a list of files, or a folder as data.dataset")
    if file.suffix not in _FORMATS:
        raise InputError(f"{file}: a data file ends in one of {', '.join(_FORMATS)}")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.suffix == ".parquet":
            return _read_parquet(file, named)
        text = read_text(file)
        if file.suffix in _JSON_FORMATS:
            return _from_records(list(_json_records(file, text)))
        with _long_fields():
            return _read_separated(file, io.StringIO(text, newline=""), columns)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Long texts are read whole; the limit is the process's, so it is put back."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _refuse_repeated(columns: Sequence[str], where: str) -> None:
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{where}: the column {repeated[0]!r} is there twice")


def _read_separated(file: Path, lines: Iterator[str], columns: Sequence[str] | None) -> Table:
    tabs = file.suffix == ".tsv"
    # GLUE's TSV files hold bare quotation marks.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    header, rows, where = tuple(columns) if columns else None, [], []
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = tuple(fields)
                _refuse_repeated(header, f"{file}:{reader.line_num}")
            elif len(fields) != len(header):
                kind = "tabs" if tabs else "commas"
                raise InputError(
                    f"{file}:{reader.line_num}: {len(fields)} fields between {kind}, expected {len(header)}: "
                    + ", ".join(header)
                )
            else:
                rows.append(tuple(fields))
                where.append(f"{file}:{reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}") from None
    return Table(header or (), rows, where)


def _json_records(file: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        for where, record in _json_values(file, text):
            if not isinstance(record, dict):
                raise InputError(f"{where}: expected an object, got {type(record).__name__}")
            yield where, record
    except InputError as error:
        raise InputError(f"{error}{_JSON_FORMS if file.suffix == '.json' else ''}") from None


def _json_values(file: Path, text: str) -> Iterator[tuple[str, object]]:
    if file.suffix == ".jsonl" or _holds_lines(text):
        for where, line in split_json_lines(text, file):
            yield where, parse_json(line, where)
    elif isinstance(value := parse_json(text, file), list):
        # As Alpaca's and ShareGPT's files.
        for number, record in enumerate(value):
            yield f"{file}: record {number}", record
    else:
        yield f"{file}:1", value


def _holds_lines(text: str) -> bool:
    """Whether a file of JSON has more after its first object: an object a line."""
    text = text.lstrip()
    if not text.startswith("{"):
        return not text
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return bool(text[end:].strip())


def _from_records(records: list[tuple[str, dict[str, object]]]) -> Table:
    columns = tuple(dict.fromkeys(key for _, record in records for key in record))
    rows = [tuple(map(record.get, columns)) for _, record in records]
    return Table(columns, rows, [where for where, _ in records])


def _read_parquet(file: Path, named: Collection[str] | None) -> Table:
    try:
        _refuse_repeated(pyarrow.parquet.read_schema(file).names, str(file))
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: not a Parquet file: {error}") from None
    columns = [
        _column_values(file, name, column) if named is None or name in named else repeat(None, table.num_rows)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    rows = list(zip(*columns, strict=True))
    return Table(tuple(table.column_names), rows, [f"{file}: row {i}" for i in range(len(rows))])


def _column_values(file: Path, name: str, column: pyarrow.ChunkedArray) -> list[object]:
    try:
        return column.to_pylist()
    # Dates beyond the year 9999, times in zones that are unknown here, nanoseconds: Arrow holds more than Python.
    except (OverflowError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{file}: column {name!r} ({column.type}) has a value that Python cannot hold ({error}): leave the column "
            "out, or convert it to text"
        ) from None
