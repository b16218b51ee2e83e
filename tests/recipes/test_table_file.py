"""Tables that commands write are read again as they were, or refused before anything is computed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ailora.errors import InputError
from ailora.recipes.data.readers import read_tables
from ailora.recipes.evaluation.table_file import escape_formulas, write_frame

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["a\tb", "a\nb", "a\r", "\r\n", '"', '""', "\\", "\\\t", "a,b", "'=x", "=1", "\0", "\ufeff", "\u2028", " "]
)
_ROWS = st.lists(st.tuples(_TEXTS, _TEXTS), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@given(rows=_ROWS)
def test_texts_are_read_again_as_they_were(tmp_path: Path, suffix: str, rows: list[tuple[str, str]]) -> None:
    file = tmp_path / f"out{suffix}"
    frame = pd.DataFrame(rows, columns=["text", "output"])
    if suffix == ".tsv" and any(sign in cell for row in rows for cell in row for sign in "\t\n\r"):
        with pytest.raises(InputError, match=r"row \d+, column '(text|output)' contains a tab or a line break"):
            write_frame(frame, file)
    else:
        write_frame(frame, file)
        assert read_tables(str(file)).rows == rows


def test_values_that_are_no_texts(tmp_path: Path) -> None:
    """Lists are JSON on one line, however long: numpy breaks its own after 75 characters."""
    scores = np.linspace(0, 1, 30)
    talk = [{"role": "user", "content": "a"}]
    frame = pd.DataFrame({"scores": [scores], "talk": [talk], "none": [None], "nan": [np.nan], "n": [10**30]})
    for suffix in (".csv", ".tsv"):
        write_frame(frame, tmp_path / f"out{suffix}")
        ((read, talked, none, nan, number),) = read_tables(str(tmp_path / f"out{suffix}")).rows
        assert json.loads(str(read)) == scores.tolist()
        assert json.loads(str(talked)) == talk
        assert (none, nan, number) == ("", "", str(10**30))
    write_frame(frame, tmp_path / "out.jsonl")
    assert read_tables(str(tmp_path / "out.jsonl")).rows == [(scores.tolist(), talk, None, None, 10**30)]


def test_what_parquet_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\.parquet: Parquet cannot hold this table .*; choose \.jsonl"):
        write_frame(pd.DataFrame({"a": ["x", 1, [2]]}), tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def test_cells_that_a_spreadsheet_would_run_are_said_or_escaped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"label": ["=cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "+1.5", "-1e-3", "a=b"], "n": -1.0})
    escaped = escape_formulas(frame)
    assert list(escaped["label"]) == ["'=cmd|' /C calc'!A0", "'@SUM(1)", "'-2+3", "+1.5", "-1e-3", "a=b"]
    assert list(escaped["n"]) == [-1.0] * 6
    with caplog.at_level(logging.WARNING):
        write_frame(escaped, tmp_path / "a.csv")
        write_frame(frame, tmp_path / "a.jsonl")
        assert not caplog.messages
        write_frame(frame, tmp_path / "b.csv")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "3 cells begin with =, +, - or @, which a spreadsheet evaluates as a formula: import the file as text"
    ]
    assert read_tables(str(tmp_path / "b.csv")).column("label") == list(frame["label"])
