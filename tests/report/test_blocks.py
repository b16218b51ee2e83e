"""Blocks and settings."""

from __future__ import annotations

from ailora.report.document import Charts, KeyValues, Note, Paragraphs, ReportTable, section
from ailora.report.report_settings import settings_blocks


def test_numbers_are_told_from_texts() -> None:
    rows = (
        ("lora", "0.7709 [0.75, 0.79]", "baseline", "3 of 5", "1e-05", "2026-01-02", "8"),
        ("a", "-", "+0.0126", "0 of 5", "0.003 to 0.01", "1.2.3", "rank"),
    )
    table = ReportTable("T", tuple("abcdefg"), rows)
    assert table.numeric == (False, True, True, True, True, False, False)


def test_a_section_of_nothing_is_none() -> None:
    assert section("S", Paragraphs(()), KeyValues(()), ReportTable("T", ("a",), ()), Charts(()), None) is None
    made = section("S", Paragraphs(()), Note("n"))
    assert made is not None
    assert made.blocks == (Note("n"),)


def test_what_differs_is_a_table_and_the_rest_is_said_once() -> None:
    configs = {
        ("a", "lora"): {"model": "m", "adapter": {"rank": 8, "policy": "lora"}, "training": {"learning_rate": 1e-3}},
        ("a", "full"): {"model": "m", "adapter": {"policy": "full"}, "training": {"learning_rate": 1e-5}},
    }
    table, code = settings_blocks(configs, ("task", "method"))
    assert isinstance(table, ReportTable)
    assert table.columns == ("task", "method", "adapter.rank", "adapter.policy", "training.learning_rate")
    assert table.rows == (("a", "lora", "8", "lora", "0.001"), ("a", "full", "-", "full", "1e-05"))
    assert code.kind == "code"
    assert code.text == "model: m\n"


def test_a_difference_behind_the_shown_digits_is_shown() -> None:
    """Both rates are 0.0012 in four decimals: they were neither among the differences nor in the common settings."""
    rates = {"a": 1.21e-3, "b": 1.24e-3, "c": None}
    (table,) = settings_blocks({(run,): {"training": {"weight_decay": rate}} for run, rate in rates.items()}, ("run",))
    assert isinstance(table, ReportTable)
    assert table.rows == (("a", "0.00121"), ("b", "0.00124"), ("c", "-"))
