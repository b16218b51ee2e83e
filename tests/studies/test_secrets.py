"""A known secret is in no file, no output and no argument list, whatever a run or a study writes."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from ailora import InputError
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml
from ailora.recipes.run_folder import RunFolder
from ailora.report.build import build_page
from ailora.report.html import write_page
from ailora.studies.study import create_or_load_study, load_study
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import work
from tests.cli.test_cli import ailora
from tests.studies.test_worker import Runs

KNOWN = "hf_s3cr3tThatNobodyMaySee"


def files_with_secret(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and KNOWN.encode() in file.read_bytes()]


@contextmanager
def watching_processes() -> Iterator[list[str]]:
    """Collect the argument lists of all processes that hold the secret, while the body runs."""
    found: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    content = file.read_bytes()
                except OSError:
                    continue
                if KNOWN.encode() in content:
                    found.append(content.decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def test_a_run_uses_its_secret_and_writes_it_nowhere(
    config: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config["training"] |= {"hub_token": KNOWN, "num_train_epochs": 1}
    loaded = load_config(config)
    arguments = None

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal arguments
            arguments = args

    with caplog.at_level(logging.DEBUG, logger="ailora"):
        registry.run(loaded, callbacks=[Look()])
        write_page(build_page([Path(config["output"])]), tmp_path / "report.html")
    assert arguments is not None
    assert arguments.hub_token == KNOWN
    assert list(Path(config["output"]).rglob("training_args.bin"))
    assert files_with_secret(tmp_path) == []
    assert KNOWN not in "".join(capfd.readouterr()) + caplog.text
    # It is the same run with another token, and without one.
    for training in ({"hub_token": "another"}, {"hub_token": None}):
        again = load_config(config | {"training": config["training"] | training})
        assert RunFolder(config["output"]).read_finished_result(again) is not None


def test_a_run_of_an_earlier_version_that_holds_a_secret_is_reported_without(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"recipe": "classification", "training": {"hub_token": KNOWN}}
    (folder / "config.yaml").write_text(format_yaml(config))
    (folder / "result.json").write_text(json.dumps({"metrics": {}, "best": {}, "config": config}))
    write_page(build_page([folder]), tmp_path / "report.html")
    assert KNOWN not in (tmp_path / "report.html").read_text()


# SQLite has no passwords: what stands in their place is ignored.
pytestmark = pytest.mark.filterwarnings("ignore:Query string argument:sqlalchemy.exc.SAWarning")


@pytest.fixture
def secret_study(study: dict[str, Any]) -> dict[str, Any]:
    """A study of one trial, with secrets in its base, a method and its storage."""
    study["base"]["training"] |= {"num_train_epochs": 1, "hub_token": KNOWN}
    return study | {
        "methods": [{"lora": {"training.hub_token": KNOWN}}],
        "learning_rate": {"values": [1e-3]},
        "seeds": [0],
        "storage": f"sqlite:///{study['output']}/study.db?password={KNOWN}",
    }


@pytest.mark.slow
def test_a_study_shows_its_secrets_nowhere(secret_study: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "secret" / "study.yaml"
    file.parent.mkdir()
    file.write_text(format_yaml(secret_study))
    with watching_processes() as found:
        command = [sys.executable, "-m", "ailora", "study", "run", str(file)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    assert found == []
    shown = [ailora("study", "status", str(file)), ailora("study", "report", str(file), "--no-bootstrap")]
    assert [command.returncode for command in shown] == [0, 0]
    printed = "".join(command.stdout + command.stderr for command in (made, *shown))
    assert KNOWN not in printed
    output = Path(secret_study["output"])
    write_page(build_page([output]), output / "report.html")
    assert {"study.db", "trials", "workers", "report.html"} <= {entry.name for entry in output.iterdir()}
    assert files_with_secret(output) == []


def test_a_worker_elsewhere_runs_the_same_trials_without_the_secrets(secret_study: dict[str, Any]) -> None:
    """Keys of trials do not depend on secrets, which are not in the storage."""
    storage, design = create_or_load_study(load_study_config(secret_study))
    secret_study["base"]["training"]["hub_token"] = "another"
    assert work(*create_or_load_study(load_study_config(secret_study)), Runs()) == 1
    elsewhere = TrialStorage.load(storage.url, storage.name)
    without = StudyDesign(load_study_config(elsewhere.config))
    assert [trial.status.value for trial in without.keys.matching_trials(elsewhere.trials())] == ["done"]
    assert design.base_config(design.conditions[0]).training["hub_token"] == KNOWN


def test_a_storage_of_an_earlier_version_loses_its_secrets_when_the_study_goes_on(secret_study: dict[str, Any]) -> None:
    config = load_study_config(secret_study)
    storage, _ = create_or_load_study(config)
    storage._study.set_user_attr("study", config.model_dump(by_alias=True, context={"secrets": True}))
    file = Path(secret_study["output"]) / "study.db"

    def stored() -> str:
        with closing(sqlite3.connect(file)) as connection:
            return "".join(connection.iterdump())

    assert KNOWN in stored()
    assert KNOWN not in json.dumps(load_study(config)[0].config)
    create_or_load_study(config)
    assert KNOWN not in stored()


def test_a_grid_over_secrets_is_refused(secret_study: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"grid.training.hub_token cannot be varied"):
        load_study_config(secret_study | {"grid": {"training.hub_token": [KNOWN, "x"]}})


@pytest.mark.parametrize(
    "override",
    [
        f"training.hub_token=[{KNOWN}]",
        f"training.hub_token={{a: {KNOWN}}}",
        f"training.hub_token=[{KNOWN}",
        f"training.hub_token:{KNOWN}",
        f"training.hub_token.x={KNOWN}",
        f"training=[{{hub_token: {KNOWN}}}]",
    ],
)
def test_messages_about_a_secret_do_not_show_it(config: dict[str, Any], override: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(config, ["training.hub_token=x", override])
    assert KNOWN not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:{}@127.0.0.1:9/none",
        "postgresql+psycopg://127.0.0.1:9/none?password={}&user=me",
        "postgresql+psycopg://me:{}",
        "postgresql+psycopg:/me:{}@host/none",
        "postgresql+psycopg://me:{}@host:port/none",
        "nosuch://me:{}@host/none",
        "me:{}@host",
        "postgresql+psycopg://me:{{{}}}@host/none",
        "sqlite://:{}@/none",
    ],
)
def test_messages_about_a_storage_do_not_show_its_password(url: str) -> None:
    with pytest.raises(InputError) as error:
        TrialStorage.load(url.format(KNOWN), "x")
    assert KNOWN not in str(error.value)
