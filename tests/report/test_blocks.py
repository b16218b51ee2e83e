"""Blocks, words and settings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ailora.formatting import counted, figure, rate, seconds, shortened, shown, size, thinned
from ailora.report.document import Charts, Facts, Note, Table, Words, section
from ailora.report.report_settings import settings
from ailora.studies.summary import listed


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
        (["a", 1], '["a", 1]'),
        ({"é": math.nan}, '{"é": NaN}'),
        ("text", "text"),
    ],
)
def test_any_value_is_shown(value: Any, said: str) -> None:
    assert shown(value) == said


def test_figures_of_every_kind() -> None:
    assert figure(0.0126, "+") == "+0.0126"
    assert (rate(0.0009486), rate(None), rate("1e-3")) == ("0.000949", "-", "1e-3")
    assert (size(590_000), size(2**31), size(12), size(math.nan)) == (
        "576.2 KiB",
        "2.0 GiB",
        "12 bytes",
        "not a number",
    )
    assert (seconds(0.44), seconds(42.4), seconds(600), seconds(9000)) == ("0.44 s", "42 s", "10 min", "2.5 h")
    assert (counted(1, "trial"), counted(1000, "trial")) == ("1 trial", "1,000 trials")
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")
    assert shortened("abcdef", 3) == "abc... (3 more characters)"


def test_a_thinned_curve_keeps_its_ends() -> None:
    assert thinned(range(5), 5) == [0, 1, 2, 3, 4]
    few = thinned(range(1000), 100)
    assert (len(few), few[0], few[-1], len(set(few))) == (100, 0, 999, 100)


def test_numbers_are_told_from_texts() -> None:
    rows = (
        ("lora", "0.7709 [0.75, 0.79]", "baseline", "3 of 5", "1e-05", "2026-01-02", "8"),
        ("a", "-", "+0.0126", "0 of 5", "0.003 (not final)", "1.2.3", "rank"),
    )
    table = Table("T", tuple("abcdefg"), rows)
    assert table.numeric == (False, True, True, True, True, False, False)


def test_a_section_of_nothing_is_none() -> None:
    assert section("S", Words(()), Facts(()), Table("T", ("a",), ()), Charts(()), None) is None
    made = section("S", Words(()), Note("n"))
    assert made is not None
    assert made.blocks == (Note("n"),)


def test_what_differs_is_a_table_and_the_rest_is_said_once() -> None:
    configs = {
        ("a", "lora"): {"model": "m", "adapter": {"rank": 8, "policy": "lora"}, "training": {"learning_rate": 1e-3}},
        ("a", "full"): {"model": "m", "adapter": {"policy": "full"}, "training": {"learning_rate": 1e-5}},
    }
    table, code = settings(configs, ("task", "method"))
    assert isinstance(table, Table)
    assert table.columns == ("task", "method", "adapter.rank", "adapter.policy", "training.learning_rate")
    assert table.rows == (("a", "lora", "8", "lora", "0.001"), ("a", "full", "-", "full", "1e-05"))
    assert code.kind == "code"
    assert code.text == "model: m\n"
