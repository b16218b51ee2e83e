"""Read JSON from untrusted files strictly, and validate plain data from JSON and YAML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ailora.errors import InputError

#: Deeper nesting would exhaust the stack of recursive functions that copy, validate or write the data.
_MAX_DEPTH = 100
_LINE_END = re.compile(r"\r\n|\r|\n")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(file: Path, kind: str = "") -> str:
    """Read a UTF-8 file with or without a byte order mark.

    Args:
        file: Path of the file.
        kind: Prefix of the path in messages, such as `configuration `, with the trailing space.

    Returns:
        Text without the byte order mark.

    Raises:
        InputError: The file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {kind}{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_json(file: Path, *, allow_nan: bool = False) -> Any:
    """Read a JSON file. See `parse_json`.

    Raises:
        InputError: The file cannot be read, or is not JSON.
    """
    return parse_json(read_text(file), file, allow_nan=allow_nan)


def read_json_object(file: Path, *, allow_nan: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object. See `parse_json`.

    Raises:
        InputError: The file cannot be read, is not JSON, or does not hold an object.
    """
    value = read_json(file, allow_nan=allow_nan)
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected an object, got {type(value).__name__}")
    return value


def split_json_lines(text: str, file: Path | str) -> Iterator[tuple[str, str]]:
    """Split JSON Lines at line ends. Strings may hold Unicode separators such as U+2028, which end no line.

    Yields:
        `file:line` and content of each line, without blank lines.
    """
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            yield f"{file}:{number}", line


def parse_json(text: str, where: Path | str, *, allow_nan: bool = False) -> Any:
    """Parse a JSON value strictly, so that the value can be copied, formatted and written again.

    Args:
        text: JSON to parse.
        where: Origin of the text as named in messages: the file, or `file:line` for a line of JSON Lines.
        allow_nan: Whether to accept NaN and infinite numbers. JSON has no such values, but `json.dump` writes them.

    Returns:
        Mapping, list, string, number, boolean or None.

    Raises:
        InputError: The text is not JSON, repeats a key, is nested too deeply, or holds a number too large for a float
            or a string that is not valid Unicode. For a syntax error, the message names the line.
    """
    hooks = _Hooks(str(where), allow_nan)
    try:
        value = json.loads(
            text,
            object_pairs_hook=hooks.build_object,
            parse_int=hooks.build_int,
            parse_float=hooks.build_float,
            parse_constant=hooks.build_constant,
        )
    except json.JSONDecodeError as error:
        # For a line of JSON Lines, `where` already ends with the line number, and `lineno` is 1.
        place = f"{where}:{error.lineno}" if error.lineno > 1 or isinstance(where, Path) else where
        raise InputError(f"{place}: not JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{where}: {_TOO_DEEP}") from None
    # The hooks have validated numbers and keys. Only deep nesting and lone surrogates remain. Validating every value
    # takes longer than parsing, hence only text that may contain either is validated.
    if text.count("[") + text.count("{") > _MAX_DEPTH or _SURROGATE_ESCAPE.search(text):
        validate_plain_data(value, str(where))
    return value


_TOO_DEEP = f"nested more than {_MAX_DEPTH} levels deep"


@dataclass(frozen=True)
class _Hooks:
    """Hooks of the standard library's parser for objects and numbers."""

    where: str
    allow_nan: bool

    def build_object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{self.where}: duplicate key {repeated[:80]!r}")
        return values

    def build_int(self, digits: str) -> int | float:
        number = self.build_float(digits)
        # With `allow_nan`, an integer larger than any float becomes infinite. `int` would raise ValueError beyond 4,300
        # digits.
        return int(digits) if math.isfinite(number) else number

    def build_float(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number) and not self.allow_nan:
            raise InputError(f"{self.where}: the number {digits[:20]}... is larger than any float")
        return number

    def build_constant(self, name: str) -> float:
        if not self.allow_nan:
            raise InputError(f"{self.where}: {name} is not JSON; write null for a missing value")
        return float(name)


def validate_plain_data(value: object, where: str, *, max_values: int | None = None) -> None:
    """Refuse plain data that are nested too deeply, hold too many values, or hold a value that JSON cannot hold.

    Args:
        value: Mappings, lists, strings, numbers, booleans or None.
        where: Origin of the data, for messages.
        max_values: Largest accepted number of values. Values behind YAML aliases count at each occurrence.

    Raises:
        InputError: The data are nested too deeply or hold too many values, or JSON cannot hold a value (the message
            names its key).
    """
    pending: list[tuple[object, tuple[object, ...]]] = [(value, ())]
    count = 0
    while pending:
        item, keys = pending.pop()
        count += 1
        if max_values is not None and count > max_values:
            raise InputError(f"{where}: more than {max_values:,} values")
        if len(keys) > _MAX_DEPTH:
            raise InputError(f"{where}: {_TOO_DEEP}")
        if isinstance(item, dict):
            for key, child in item.items():
                pending += [(key, keys), (child, (*keys, key))]
        elif isinstance(item, list):
            pending += [(child, (*keys, index)) for index, child in enumerate(item)]
        elif reason := _explain_refusal(item):
            raise InputError(f"{where}: {'.'.join(map(ascii, keys))}{': ' if keys else ''}{reason}")


def _explain_refusal(item: object) -> str | None:
    """Return the reason why JSON cannot hold a value, or None."""
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError as error:
            return f"{item[error.start]!a} is half a character (a lone surrogate), which no file can hold"
        return None
    if isinstance(item, int):
        try:
            float(item)
        except OverflowError:
            return f"a number of {item.bit_length()} bits is larger than any float"
        return None
    if not isinstance(item, float | None):
        return f"a value of the type {type(item).__name__}; expected strings, numbers, lists and mappings"
    return None
