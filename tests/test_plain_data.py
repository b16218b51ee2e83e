"""JSON from strangers: read strictly, or refused with file, line and key."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailora.errors import InputError
from ailora.plain_data import parse_json, read_json, read_json_object, split_json_lines

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(_VALUES, st.booleans())
def test_json_is_read_as_it_was_written(value: object, escape: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=escape), "f") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n"b" 2}', r"f\.json:2: not JSON: Expecting ':' delimiter"),
        (b"", r"f\.json:1: not JSON"),
        (b"[" * 150 + b"]" * 150, r"f\.json: nested more than 100 levels deep"),
        (b"[" * 200_000, r"f\.json: nested more than 100 levels deep"),
        (b'{"a": ' * 200_000, r"f\.json: nested more than 100 levels deep"),
        (b'{"a": ["\\ud83d"]}', r"f\.json: 'a'\.0: '\\ud83d' is half a character"),
        (b'{"\\uDE00": 1}', r"f\.json: '\\ude00' is half a character"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"f\.json: the number 9+\.\.\. is larger than any float"),
        (b"-1e999", r"f\.json: the number -1e999\.\.\. is larger than any float"),
        (b'{"a": NaN}', r"f\.json: NaN is not JSON; write null"),
        (b"[-Infinity]", r"f\.json: -Infinity is not JSON"),
        (b'{"a": {"b": 1, "b": 2}}', r"f\.json: duplicate key 'b'"),
        (b'{"a": "\xe9"}', r"f\.json: not UTF-8 text: .* at byte 7"),
        ('{"a": 1}'.encode("utf-16"), r"f\.json: not UTF-8 text"),
    ],
)
def test_other_json_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(file)


def test_json_of_another_type_or_none_at_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    with pytest.raises(InputError, match=r"cannot read .*f\.json: No such file"):
        read_json_object(file)
    file.write_text("[1]")
    with pytest.raises(InputError, match=r"f\.json: expected an object, got list"):
        read_json_object(file)


def test_a_byte_order_mark_and_whole_characters_are_read(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(b'\xef\xbb\xbf["\\ud83d\\ude00"]')
    assert read_json(file) == ["😀"]


def test_numbers_that_are_not_finite_are_read_where_libraries_write_them() -> None:
    nan, infinite, integer, large = parse_json(f"[NaN, -Infinity, {'9' * 400}, 1{'0' * 30}]", "f", allow_nan=True)
    assert math.isnan(nan)
    assert (infinite, integer, large) == (-math.inf, math.inf, 10**30)


def test_lines_end_at_line_ends_only() -> None:
    text = '{"a": "x\u2028y\x85\x0cz"}\r\n\n{"b": 1}'
    assert list(split_json_lines(text, "f")) == [("f:1", '{"a": "x\u2028y\x85\x0cz"}'), ("f:3", '{"b": 1}')]


def test_a_line_is_named_by_its_own_number() -> None:
    with pytest.raises(InputError, match=r"^f\.jsonl:7: not JSON"):
        parse_json("{", "f.jsonl:7")
