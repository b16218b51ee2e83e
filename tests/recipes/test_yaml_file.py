"""YAML 1.2, and the files that earlier versions wrote by YAML 1.1."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import ailora
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml, read_yaml

#: What PyYAML's safe_dump wrote -> the value that it was.
WRITTEN_BEFORE = {
    "'yes'": "yes",
    "'no'": "no",
    "'on'": "on",
    "y": "y",
    "'null'": "null",
    "null": None,
    "true": True,
    "1.0e-05": 1e-5,
    "1.0e+22": 1e22,
    "0.002": 2e-3,
    ".inf": math.inf,
    "-.inf": -math.inf,
    "'010'": "010",
    "08": "08",
    "0o17": "0o17",
    "'1_000'": "1_000",
    "'1:30'": "1:30",
    "'2001-01-01'": "2001-01-01",
    '"\\x07\\uFEFF"': "\x07\ufeff",
    "é 日本 😀": "é 日本 😀",
    "'{{a}}\n\n  {b}'": "{{a}}\n{b}",
    '"{question}\\n  {context}"': "{question}\n  {context}",
    "a longer text that\n  was folded": "a longer text that was folded",
    "''": "",
    "[]": [],
    "{}": {},
}


@pytest.mark.parametrize(("text", "value"), WRITTEN_BEFORE.items())
def test_values_of_earlier_run_folders_are_read_as_they_were(text: str, value: object) -> None:
    read = parse_yaml(f"key: {text}\n")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", [*WRITTEN_BEFORE.values(), 1e-3, "1e-3", "1e5", "-.5", "Off", "~", "=", " x", "# x", "a\x85b", "\u2028"]
)
def test_what_is_written_is_read_again(value: object) -> None:
    text = format_yaml({"b": value, "a": [value, {"c": value}]})
    assert parse_yaml(text) == {"b": value, "a": [value, {"c": value}]}
    assert text.startswith("b:")


def test_numbers_and_words_are_those_of_yaml_1_2() -> None:
    text = "[yes, no, on, off, 010, 1e-3, 0x10, true, ~]"
    assert parse_yaml(text) == ["yes", "no", "on", "off", "010", 1e-3, 16, True, None]
    assert math.isnan(parse_yaml(".nan"))
    assert parse_yaml("[2001-01-01, 2001-13-45]") == ["2001-01-01", "2001-13-45"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [2", "line 2: "),
        ("a: 1\nb: 2\na: 3", 'line 3: found duplicate key "a"'),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("!!python/object:os.system x", "could not determine a constructor"),
        ("!!bool x", "is not a YAML value: 'x'"),
        ("\0", "special characters are not allowed"),
        ("- " * 2000 + "x", "the nesting is too deep"),
        ("9" * 5000, "Exceeds the limit"),
        ("0x" + "f" * 5000, "a number of 20000 bits is larger than any float"),
        ("0x" + "f" * 256, "a number of 1024 bits is larger than any float"),
        ("a: " + "[" * 150 + "]" * 150, "nested more than 100 levels deep"),
        ("&a [*a]", "nested more than 100 levels deep"),
        ("\n".join(f"{n}: &{n} [{', '.join([f'*{n - 1}'] * 10) if n else 1}]" for n in range(9)), "100,000 values"),
        ('a: {b: "\\ud83d"}', r"'a'\.'b': '\\ud83d' is half a character"),
        ("a: !!set {b, c}", "'a': a value of the type set"),
        ("a: !!binary aGk=", "'a': a value of the type bytes"),
        ("? [a, b]\n: 1", "a value of the type tuple"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        parse_yaml(text)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for name, message in [
        ("latin.yaml", r"latin\.yaml: not UTF-8 text"),
        ("no.yaml", "cannot read .*No such file"),
    ]:
        with pytest.raises(ailora.InputError, match=message):
            read_yaml(tmp_path / name)
