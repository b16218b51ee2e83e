"""Findings on the directions of updates, from tables whose answer is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from ailora.plots.analysis_charts import write_analysis
from tests.analysis.conftest import Made, analyze

pytestmark = pytest.mark.ci


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with its neighbours on the path."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import directions

    yield directions
    for name in ("directions", "paper_claims", "study_records", "machine"):
        sys.modules.pop(name, None)


def band(left: list[float], right: list[float]) -> pd.DataFrame:
    """Shares of three layers where chance is 0.1."""
    rows = [(side, share, 0.1) for side, shares in (("left", left), ("right", right)) for share in shares]
    return pd.DataFrame(rows, columns=["side", "share", "chance"])


@pytest.mark.parametrize(
    ("left", "right", "finding"),
    [
        ([0.2, 0.21, 0.22], [0.3, 0.31, 0.32], "confirmed"),
        ([0.2, 0.21, 0.22], [0.05, 0.051, 0.052], "refuted"),
        ([0.2, 0.21, 0.22], [0.05, 0.1, 0.2], "undecided"),
    ],
)
def test_both_sides_must_exceed_chance(script: ModuleType, left: list[float], right: list[float], finding: str) -> None:
    _, found, numbers = script._judge_band(band(left, right), "text")
    assert found.value == finding
    assert numbers.startswith("times chance: 2.1 [")


def test_a_finished_analysis_becomes_numbers_figures_and_findings(
    script: ModuleType, models: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = analyze(str(models("llama")), [models("llama-full")], rank=2, directions=True)
    write_analysis(made, tmp_path / "analysis")
    monkeypatch.setattr("machine.RESULTS", tmp_path)
    monkeypatch.setattr(script, "IMAGES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["directions.py", str(tmp_path / "analysis"), "mpnet"])
    script.main()
    data = json.loads((tmp_path / "directions-mpnet.json").read_text())
    texts = [claim["text"] for claim in data["claims"]]
    assert texts[0].startswith("W^Q is dispersed")
    assert "llama-full: dW of value lies in minor directions" in texts
    assert str(tmp_path) not in (tmp_path / "directions-mpnet.json").read_text()
    assert {file.name for file in tmp_path.glob("*.svg")} == {"directions-mpnet.svg", "figure1-mpnet.svg"}
