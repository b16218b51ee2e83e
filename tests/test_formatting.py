"""Values as readers see them."""

from __future__ import annotations

import math
import subprocess

import pytest

from ailora.formatting import (
    downsample,
    escape_controls,
    format_alike,
    format_bytes,
    format_duration,
    format_interval,
    format_lr,
    format_number,
    format_signal,
    format_value,
    join_names,
    pluralize,
    quote_argument,
    shorten,
)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "not a number"),
        (math.inf, "infinite"),
        (-math.inf, "minus infinite"),
        (0.0, "0.0000"),
        (0.77087, "0.7709"),
        (1.23e-5, "1.23e-05"),
        (123456.0, "1.23e+05"),
        (74498, "74,498"),
        (True, "yes"),
        (None, "-"),
        ("", "-"),
        (["a", 1], "a, 1"),
        ([], "none"),
        ({"é": math.nan, "b": [0.5]}, "é not a number, b 0.5000"),
        ("text", "text"),
    ],
)
def test_any_value_is_formatted(value: object, said: str) -> None:
    assert format_value(value) == said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("adapter_bytes", 590_000, "576.2 KiB"),
        ("bytes_read", None, "-"),
        ("train_seconds", 42.4, "42 s"),
        ("training.learning_rate", 0.0009486, "0.000949"),
        ("learning_rate", "auto", "auto"),
        ("training.data_seed", 20_240_101, "20240101"),
        ("errors", {"lost_bytes": 12}, "lost_bytes 12 bytes"),
    ],
)
def test_a_name_says_the_unit(name: str, value: object, said: str) -> None:
    assert format_value(value, name) == said


def test_numbers_of_every_kind() -> None:
    assert format_number(0.0126, "+") == "+0.0126"
    assert (format_lr(0.0009486), format_lr(None), format_lr("1e-3")) == ("0.000949", "-", "1e-3")
    assert (format_bytes(590_000), format_bytes(2**31), format_bytes(12), format_bytes(math.nan)) == (
        "576.2 KiB",
        "2.0 GiB",
        "12 bytes",
        "not a number",
    )
    assert (format_duration(0.44), format_duration(42.4), format_duration(600), format_duration(9000)) == (
        "0.44 s",
        "42 s",
        "10 min",
        "2.5 h",
    )
    assert format_interval(0.5, 0.4, 0.6, "+") == "+0.5000 [+0.4000, +0.6000]"
    assert format_interval(0.5, None, None) == "0.5000"
    assert format_interval(-0.0097, -0.0191, -0.0003) == "-0.0097 [-0.0191, -0.0003]"
    assert format_interval(math.nan, math.nan, math.nan) == "not a number"
    assert format_alike([0.0123, 0.0005, math.nan], "+") == ["+0.0123", "+0.0005", "not a number"]
    assert format_alike([]) == []
    assert (pluralize(1, "trial"), pluralize(1000, "trial")) == ("1 trial", "1,000 trials")
    assert (join_names(["a"]), join_names(["a", "b", "c"])) == ("a", "a, b and c")
    assert shorten("abcdef", 3) == "abc... (3 more characters)"


def test_signals_without_a_name_are_numbers() -> None:
    assert [format_signal(number) for number in (9, 15, 35)] == ["SIGKILL", "SIGTERM", "35"]


def test_a_thinned_curve_keeps_its_ends() -> None:
    assert downsample(range(5), 5) == [0, 1, 2, 3, 4]
    few = downsample(range(1000), 100)
    assert (len(few), few[0], few[-1], len(set(few))) == (100, 0, 999, 100)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\rb\x08\x7f\x9b31m\0", r"a\rb\x08\x7f\x9b31m\x00"),
        ("abc\u202ecba\u2066", r"abc\u202ecba\u2066"),
        ("\ud83d", r"\ud83d"),
        ("tab\tline\nעברית 😀 C:\\x1b", "tab\tline\nעברית 😀 C:\\x1b"),
    ],
)
def test_what_commands_a_terminal_is_written_as_escapes(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


@pytest.mark.parametrize(
    "name", ["run", "a b", "it's", "$(touch x)", "`x`", "a;b", "\x1b[2J", "l\nr", "é 😀", "\u202e'\\", "-f", "*"]
)
def test_a_quoted_argument_reaches_the_command_as_it_is(name: str) -> None:
    quoted = quote_argument(name)
    assert quoted.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert read.stdout.decode() == name
