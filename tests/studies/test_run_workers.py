"""Workers of `ailora study run`: one that dies is replaced, one that would die for ever is not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from ailora import InputError
from ailora.studies import worker_processes
from ailora.studies.study import create_or_load_study
from ailora.studies.study_config import StudyConfig, load_study_config
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker_processes import run_workers

#: Shell scripts in the place of workers.
KILLED, REFUSED, FAILED, DONE = "kill -9 $$", "echo wrong input; exit 2", "echo lost connection; exit 1", "exit 0"
Start = Callable[[Iterator[str]], list[str]]


@pytest.fixture
def storage(loaded: StudyConfig) -> Iterator[TrialStorage]:
    storage, _ = create_or_load_study(loaded)
    yield storage
    storage.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Give the workers that are started one after the other scripts to run, and list those that ran."""

    def use(scripts: Iterator[str]) -> list[str]:
        ran: list[str] = []

        def start(storage: TrialStorage, config: StudyConfig, log: Path, count: int) -> subprocess.Popen[bytes]:
            ran.append(next(scripts))
            with log.open("ab") as output:
                return subprocess.Popen(["sh", "-c", ran[-1]], stdin=subprocess.PIPE, stdout=output, stderr=output)

        monkeypatch.setattr(worker_processes, "_start_worker", start)
        monkeypatch.setattr(worker_processes, "_POLL_INTERVAL_S", 0.01)
        return ran

    return use


@pytest.mark.parametrize("death", [KILLED, FAILED])
def test_a_worker_that_dies_as_it_begins_is_replaced(
    storage: TrialStorage, loaded: StudyConfig, started: Start, death: str
) -> None:
    ran = started(iter([DONE, death, death, DONE]))
    run_workers(storage, loaded, 2, lambda: None)
    assert sorted(ran) == sorted([DONE, death, death, DONE])


@pytest.mark.parametrize(
    ("death", "message"), [(KILLED, r"signal SIGKILL: see .*0\.log"), (FAILED, r"code 1 \(lost connection\): see")]
)
def test_workers_that_die_without_an_advance_end_the_study(
    storage: TrialStorage, loaded: StudyConfig, started: Start, death: str, message: str
) -> None:
    ran = started(repeat(death))
    with pytest.raises(InputError, match=message):
        run_workers(storage, loaded, 1, lambda: None)
    assert len(ran) == 6


def test_a_death_after_an_advance_is_the_first_one_again(
    storage: TrialStorage, loaded: StudyConfig, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker takes a trial and dies with it."""
    ran = started(chain(repeat(KILLED, 20), [DONE]))
    monkeypatch.setattr(worker_processes, "_count_attempts", lambda _: len(ran))
    run_workers(storage, loaded, 1, lambda: None)
    assert len(ran) == 21


def test_a_worker_whose_input_is_wrong_is_not_started_again(
    storage: TrialStorage, loaded: StudyConfig, started: Start
) -> None:
    ran = started(repeat(REFUSED))
    with pytest.raises(InputError, match=r"a worker ended with code 2 \(wrong input\): see .*workers/0\.log"):
        run_workers(storage, loaded, 1, lambda: None)
    assert len(ran) == 1


def test_a_worker_gets_its_secrets_through_a_pipe_and_nothing_from_the_current_folder(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study["base"]["training"]["hub_token"] = "s3cr3t"
    config = load_study_config(study)
    storage, _ = create_or_load_study(config)
    storage.url = "postgresql://me:s3cr3t@host/studies"
    monkeypatch.setenv("PYTHONPATH", os.pathsep + str(tmp_path))
    started: list[tuple[list[str], dict[str, str]]] = []
    popen = subprocess.Popen

    def start(command: list[str], *, env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
        started.append((command, env))
        return popen(["cat"], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    log = tmp_path / "0.log"
    worker = worker_processes._start_worker(storage, config, log, 1)
    worker_processes._close(worker)
    worker.wait()
    ((command, environment),) = started
    assert "-P" in command
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["PYTHONPATH"] == str(tmp_path)
    assert "s3cr3t" not in str(started)
    handover = json.loads(log.read_text())
    assert handover["storage"] == storage.url
    assert handover["study"]["base"]["training"]["hub_token"] == "s3cr3t"
    storage.close()


@pytest.mark.parametrize(
    ("visible", "count", "devices"),
    [(None, 3, ["0", "1", "0"]), ("2,5", 2, ["2", "5"]), ("3", 2, [None, None]), (None, 1, [None])],
)
def test_each_of_several_workers_gets_a_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, devices: list[str | None]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = [worker_processes._device_environment(number, count) for number in range(count)]
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments] == devices
