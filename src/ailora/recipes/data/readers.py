"""Local files as tables that remember where each row came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ailora.errors import InputError

#: The largest length that every C compiler's `long` holds; Python's own limit of a field is 131072 characters.
_LONGEST_FIELD = 2**31 - 1
_FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")


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


def read_tables(paths: str | Sequence[str], columns: Sequence[str] | None = None) -> Table:
    """Read one file or several with the same columns, one after the other.

    TSV files are read as GLUE's are, without quoting; CSV files with it. JSONL holds an object a line; a file of JSON
    may instead hold one list of objects.

    Args:
        paths: files ending in .tsv, .csv, .jsonl (.json) or .parquet.
        columns: the names of the columns of TSV and CSV files that have no header line.

    Raises:
        InputError: a file that is missing, empty, broken (file and line named), or has other columns than the first.
    """
    names = [paths] if isinstance(paths, str) else list(paths)
    if not names:
        raise InputError("an empty list of data files")
    tables = [_read(Path(name), columns) for name in names]
    for name, table in zip(names, tables, strict=True):
        if table.columns != tables[0].columns:
            raise InputError(f"{name} has the columns {table.columns}, but {names[0]} has {tables[0].columns}")
        if not table.rows:
            raise InputError(f"{name} holds no rows")
    rows = [row for table in tables for row in table.rows]
    return Table(tables[0].columns, rows, [place for table in tables for place in table.where])


def _read(file: Path, columns: Sequence[str] | None) -> Table:
    if file.is_dir():
        raise InputError(f"{file} is a folder; give a file, a list of files, or a folder as data.dataset")
    if file.suffix not in _FORMATS:
        raise InputError(f"{file}: a data file ends in one of {', '.join(_FORMATS)}")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.suffix == ".parquet":
            return _read_parquet(file)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix in (".jsonl", ".json"):
                return _from_records(list(_json_records(file, lines)))
            with _long_fields():
                return _read_separated(file, lines, columns)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None


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


def _json_records(file: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, object]]]:
    if file.suffix == ".json":
        text = "".join(lines)
        if text.lstrip().startswith("["):
            yield from _listed_records(file, text)
            return
        lines = iter(text.splitlines())
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            record = json.loads(line, object_pairs_hook=partial(_object, where))
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected an object a line, got {type(record).__name__}")
        yield where, record


def _listed_records(file: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The records of one list, as Alpaca's and ShareGPT's files hold it."""
    try:
        records = json.loads(text, object_pairs_hook=partial(_object, str(file)))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"{file}: record {number}: expected an object, got {type(record).__name__}")
        yield f"{file}: record {number}", record


def _object(where: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    _refuse_repeated([key for key, _ in pairs], where)
    return dict(pairs)


def _from_records(records: list[tuple[str, dict[str, object]]]) -> Table:
    columns = tuple(records[0][1]) if records else ()
    for where, record in records:
        if record.keys() != set(columns):
            raise InputError(f"{where}: keys {sorted(record)}, expected {sorted(columns)}")
    rows = [tuple(record[name] for name in columns) for _, record in records]
    return Table(columns, rows, [where for where, _ in records])


def _read_parquet(file: Path) -> Table:
    try:
        _refuse_repeated(pyarrow.parquet.read_schema(file).names, str(file))
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: not a Parquet file: {error}") from None
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return Table(tuple(table.column_names), rows, [f"{file}: row {i}" for i in range(len(rows))])
