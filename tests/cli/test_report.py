"""`ailora report`, from folders to a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import ailora
from tests.report.sample_studies import plausible, run_folder, stored, study_file


def test_a_run_and_a_study_become_one_file(tmp_path: Path) -> None:
    file = study_file(tmp_path, methods=["lora", "ailora"], seeds=[0], scales={"small": {"seeds": [0]}})
    store, _ = stored(file, plausible)
    store.close()
    run, out = run_folder(tmp_path / "run"), tmp_path / "report.html"
    made = ailora("report", str(run), str(file), "--scale", "small", "--out", str(out))
    assert made.returncode == 0, made.stderr
    assert f"written to {out}" in made.stdout.replace("\n", "")
    text = out.read_text(encoding="utf-8")
    assert "run and study - ailora report" in text
    assert "The only comparison with the baseline lora is" in text


def test_what_is_left_out_is_said_and_the_rest_written(tmp_path: Path) -> None:
    run, out = run_folder(tmp_path / "run"), tmp_path / "report.html"
    made = ailora("report", str(run), str(tmp_path / "nowhere"), "--out", str(out))
    assert made.returncode == 1
    assert "not shown on the page: there is no" in made.stderr
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--out", "{tmp}/missing/report.html"], "there is no folder"),
        (["{run}", "--out", "{tmp}"], "is a folder"),
        (["{run}", "--out", "{tmp}/thesis.tex"], "has no mark of ailora"),
        (["{run}", "--out", "{run}/result.json", "--force"], "which is an input"),
        (["{tmp}/nowhere"], "there is no"),
        (["{tmp}"], "none of a run"),
    ],
)
def test_bad_input_is_one_message_and_no_file(tmp_path: Path, arguments: list[str], message: str) -> None:
    run = run_folder(tmp_path / "run")
    (tmp_path / "thesis.tex").write_text("mine")
    made = ailora("report", *(one.format(run=run, tmp=tmp_path) for one in arguments), cwd=tmp_path)
    assert made.returncode == 2
    assert message in made.stderr
    assert "Traceback" not in made.stderr
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "thesis.tex").read_text() == "mine"
