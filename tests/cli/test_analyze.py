"""`ailora analyze` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from ailora.analysis import load_analysis
from tests.analysis.conftest import *  # noqa: F403
from tests.analysis.conftest import Made
from tests.cli.test_cli import ailora


def test_a_table_findings_and_a_folder(models: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("analyze", str(models("llama")), str(models("llama-full")), str(models("llama-adapter")))
    made = ailora(*arguments, "--out", str(out), "--rank", "3", "--roles", "query, value")
    assert made.returncode == 0, made.stderr
    for word in ("llama-full", "llama-adapter", "|dW|/|W|", "dispersed", "Intruder dimensions", f"figures: {out}"):
        assert word in made.stdout
    assert load_analysis(out).info["settings"]["rank"] == 3
    again = ailora(*arguments, "--out", str(out))
    assert again.returncode == 2
    assert "already holds an analysis" in again.stderr
    shown = json.loads(ailora(*arguments, "--out", str(out), "--force", "--json").stdout)
    assert shown["out"] == str(out)
    assert shown["findings"] == load_analysis(out).info["findings"]


def test_mistakes_end_with_one_line_and_write_nothing(models: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more, message in (
        ([str(models("llama")), "--roles", "query,valeu"], "unknown role 'valeu' (did you mean 'value'?)"),
        ([str(models("llama")), str(models("gpt2-adapter"))], "does not fit the base"),
        ([str(models("llama")), str(tmp_path / "nothing")], "is not a folder"),
        ([str(models("llama")), "--points", "dots"], "unknown kind of points 'dots'"),
        ([str(tmp_path / "no-base")], "is not a folder"),
    ):
        made = ailora("analyze", *more, "--out", str(out))
        assert made.returncode == 2
        assert made.stderr.splitlines()[-1].startswith("ailora: error: ")
        assert message in made.stderr
        assert not out.exists()
