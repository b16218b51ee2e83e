"""`ailora study`, from the file to the table."""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.main import get_command

from ailora.cli import app, study_progress
from ailora.cli import report as report_command
from ailora.cli import study as study_command
from ailora.errors import InputError
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study import create_or_load_study
from ailora.studies.study_config import load_study_config
from ailora.studies.trial import Status, TrialResult
from ailora.studies.trial_runner import TrialError
from ailora.studies.worker import work
from tests.cli.test_cli import ailora
from tests.recipes.conftest import config, tiny_bert, verdicts
from tests.studies.conftest import study

__all__ = ["config", "study", "tiny_bert", "verdicts"]


@pytest.fixture
def file(study: dict[str, Any], tmp_path: Path) -> Path:
    """Two methods, one rate, two seeds: four trials that train."""
    made = tmp_path / "study.yaml"
    study["base"]["data"]["test"] = study["base"]["data"]["validation"]
    changes = {"methods": ["lora", "ailora"], "learning_rate": {"values": [5e-3]}, "seeds": [0, 1]}
    made.write_text(format_yaml(study | changes | {"scales": {"tiny": {"seeds": [0]}}}))
    return made


def test_the_cursor_is_shown_again_if_the_storage_fails_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Storage:
        name, lost = "study", False

        def trials(self) -> list[object]:
            if self.lost:
                raise OSError("the disk is gone")
            return []

    class Keys:
        conditions = ()

        def matching_trials(self, trials: list[object]) -> list[object]:
            return trials

    terminal, storage = io.StringIO(), Storage()
    monkeypatch.setattr(study_progress, "console", Console(file=terminal, force_terminal=True))
    progress = study_progress.Progress(storage, Keys())  # pyright: ignore[reportArgumentType]
    with pytest.raises(OSError, match="the disk is gone"), progress:
        storage.lost = True
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("command", ["run", "status", "report", "export"])
def test_overrides_in_the_help_apply_to_a_study_file(command: str, file: Path) -> None:
    commands: Any = get_command(app)
    parameters = commands.commands["study"].commands[command].params
    (text,) = (parameter.help for parameter in parameters if parameter.name == "overrides")
    examples = re.findall(r"[\w.]+=[\w.]+\w", text)
    assert examples
    load_study_config(file, examples)


@pytest.mark.ci
def test_a_study_from_its_file_to_its_report(file: Path, tmp_path: Path) -> None:
    ran = ailora("study", "run", str(file), "--workers", "2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("done base") == 4

    shown = ailora("study", "status", str(file))
    assert shown.returncode == 0
    assert "running" in shown.stdout

    told = ailora("study", "report", str(file))
    assert told.returncode == 0, told.stderr
    assert "split): ailora is undecided." in " ".join(told.stdout.split())
    numbers = json.loads(ailora("study", "report", str(file), "--json").stdout)
    assert numbers["baseline"] == "lora"
    assert [group["trials"]["ended"] for group in numbers["groups"]] == [2, 2]

    written = ailora("study", "report", str(file), "--out", str(tmp_path / "report.md"))
    assert written.returncode == 0
    assert (tmp_path / "report.md").read_text().startswith("## study\n")

    both = ailora("study", "report", str(file), "--out", str(tmp_path / "both.md"), "--json")
    assert json.loads(both.stdout) == numbers
    assert (tmp_path / "both.md").read_text() == (tmp_path / "report.md").read_text()

    for name in ("trials.csv", "trials.parquet"):
        assert ailora("study", "export", str(file), "--out", str(tmp_path / name)).returncode == 0
    rows = pd.read_csv(tmp_path / "trials.csv")
    assert len(rows) == 4
    needed = {"task", "method", "learning_rate", "seed", "status", "test_accuracy", "validation_loss", "seconds"}
    assert needed <= set(rows.columns)
    assert pd.read_parquet(tmp_path / "trials.parquet")["status"].tolist() == ["done"] * 4

    again = ailora("study", "run", str(file))
    assert again.returncode == 0
    assert "done base" not in again.stdout


def test_a_worker_without_the_data_fails_no_trial(study: dict[str, Any], tmp_path: Path) -> None:
    data = study["base"]["data"]
    data["train"] = shutil.copy(data["train"], tmp_path)
    storage, _ = create_or_load_study(load_study_config(study))
    Path(data["train"]).unlink()
    made = ailora("study", "work", storage.url, storage.name)
    assert made.returncode == 2
    assert data["train"] in made.stderr
    assert {trial.status for trial in storage.trials()} == {Status.WAITING}
    storage.close()


def test_status_tells_why_trials_were_refused(file: Path) -> None:
    def refuse(config: RunConfig, keep: str, should_continue: object) -> TrialResult:
        raise TrialError("InputError: training.optim: no such optimizer")

    storage, design = create_or_load_study(load_study_config(file))
    assert work(storage, design, refuse) == 2
    storage.close()
    made = ailora("study", "status", str(file))
    assert made.returncode == 0, made.stderr
    assert "\n2 trials refused: InputError: training.optim: no such optimizer\n" in made.stdout
    assert "`ailora study run --retry-refused` runs them again" in made.stdout


@pytest.mark.parametrize("command", [report_command.report, study_command.report, study_command.export])
def test_no_output_replaces_the_trials_of_a_study(command: Callable[..., None], file: Path, tmp_path: Path) -> None:
    database = tmp_path / "trials.csv"
    file.write_text(file.read_text() + f"storage: sqlite:///{database}\n")
    config = load_study_config(file)
    create_or_load_study(config)[0].close()
    result = config.trials_folder / "some_trial" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    source = [file] if command is report_command.report else file
    for output in (database, result, file):
        before = output.read_bytes()
        with pytest.raises(InputError, match="an input"):
            command(source, out=output, force=True)
        assert output.read_bytes() == before


def test_a_scale_and_overrides_are_another_grid(file: Path) -> None:
    made = ailora("study", "status", str(file), "--scale", "tiny")
    assert made.returncode == 2
    assert "holds no study 'study': `ailora study run` creates it" in made.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["run", "{file}", "methods=[pisa]"], "unknown policy 'pisa' (did you mean 'pissa'?)"),
        (["run", "{file}", "metric=bleu"], "unknown metric of task 'base' 'bleu'"),
        (["run", "{file}", "baseline=full"], "unknown baseline 'full'; allowed: lora, ailora"),
        (
            ["run", "{file}", "storage=postgresql+psycopg://me:pw@127.0.0.1:9/x"],
            "me:***@127.0.0.1:9/x cannot be reached",
        ),
        (["run", "{file}", "--scale", "large"], "unknown scale 'large'"),
        (
            ["export", "{file}", "--out", "trials.xls"],
            "trials.xls: expected an output file that ends in one of .tsv, .csv",
        ),
        (["run", "{file}", "scales.small=1"], "scales cannot be overridden; --scale selects"),
        (["work", "sqlite:////nowhere/study.db", "x"], "holds no study 'x'"),
        (["work", "sqlite:////tmp", "x"], "is a folder; expected a database file"),
    ],
)
def test_bad_input_is_one_message(file: Path, arguments: list[str], message: str) -> None:
    made = ailora("study", *(argument.format(file=file) for argument in arguments))
    assert made.returncode == 2
    assert message in made.stderr
    assert "Traceback" not in made.stderr


@pytest.mark.ci
def test_a_file_that_no_longer_fits_changes_nothing(file: Path, study: dict[str, Any]) -> None:
    assert ailora("study", "run", str(file), "seeds=[0]", "methods=[lora]").returncode == 0
    database = Path(study["output"]) / "study.db"
    with sqlite3.connect(database) as connection:
        before = list(connection.iterdump())
    connection.close()
    made = ailora("study", "run", str(file), "base.adapter.rank=2")
    assert made.returncode == 2
    assert "no longer fits its storage (base.adapter.rank: 4 there, 2 now)" in made.stderr
    connection = sqlite3.connect(database)
    assert list(connection.iterdump()) == before
    connection.close()
