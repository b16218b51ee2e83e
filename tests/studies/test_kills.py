"""Studies whose workers are killed at random end as those that nobody disturbed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study import create_or_load_study, trial_frame
from ailora.studies.study_config import load_study_config
from ailora.studies.trial import Status
from ailora.studies.trial_storage import TrialStorage

ROOT = Path(__file__).resolve().parents[2]
#: What differs between two runs of the same spec.
TIMES = ["attempts", "seconds", "init_seconds", "train_seconds", "peak_memory_bytes", "folder"]


def finish(command: list[str], *, kills: int, between: tuple[float, float], seed: int = 0) -> int:
    """Let two workers go on until both say that nothing is left; how often one was killed."""
    chance = random.Random(seed)
    workers = [_start(command), _start(command)]
    killed = 0
    due = time.monotonic() + chance.uniform(*between)
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
        if killed < kills and time.monotonic() > due:
            victim = chance.randrange(2)
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = _start(command)
            killed += 1
            due = time.monotonic() + chance.uniform(*between)
    assert [worker.returncode for worker in workers] == [0, 0]
    return killed


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], cwd=ROOT)


def table(study: dict[str, Any]) -> pd.DataFrame:
    storage, design = create_or_load_study(load_study_config(study))
    rows = trial_frame(storage, design).drop(columns=TIMES).sort_values("key").reset_index(drop=True)
    storage.close()
    return rows


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_workers_under_fire(study: dict[str, Any], tmp_path: Path, kind: str, request: Any) -> None:
    """Runs of 0.1 s that a kill meets at any place: between, while one begins, while its end is written."""
    storage = request.getfixturevalue("postgres") if kind == "postgresql" else None
    seeds = list(range(10))
    changes = {"seeds": seeds, "seeds_at": "all", "worker_timeout": 2, "retries": 50, "name": f"fire-{kind}"}
    study = study | changes | ({"storage": storage} if storage else {})
    storage, _ = create_or_load_study(load_study_config(study))
    runs = tmp_path / "runs"
    command = ["-m", "tests.studies.worker_process", storage.url, storage.name, str(runs), "0.1"]
    assert finish(command, kills=3, between=(12, 16)) > 0
    trials = storage.trials()
    assert Counter(trial.status for trial in trials) == {Status.COMPLETE: 60}
    assert len({trial.key for trial in trials}) == 60
    ended = Counter(line.split()[1] for line in runs.read_text().splitlines() if line.startswith("end"))
    # A run whose end was not written down any more is made again; each kill costs at most one.
    assert ended.keys() == {trial.key for trial in trials}
    assert sum(ended.values()) <= 60 + 3
    storage.close()


@pytest.mark.ci
def test_killed_workers_run_the_seeds_of_every_look_once(study: dict[str, Any], tmp_path: Path) -> None:
    """Equal methods: the signs of their differences show equivalence at twelve seeds, the fourth look."""
    changes = {"seeds": {"from": 3, "until": "decided", "to": 20}, "worker_timeout": 2, "retries": 50, "name": "looks"}
    storage, design = create_or_load_study(load_study_config(study | changes))
    runs = tmp_path / "runs"
    command = ["-m", "tests.studies.worker_process", storage.url, storage.name, str(runs), "0.1"]
    assert finish(command, kills=2, between=(10, 14)) > 0
    # Three rates with three seeds each, then nine more seeds at the best rate, of two methods.
    trials = storage.trials()
    assert Counter(trial.status for trial in trials) == {Status.COMPLETE: 36}
    assert {trial.spec for trial in trials} == set(design.required_trials(trials))
    storage.close()


@pytest.mark.slow
def test_real_runs_under_fire_end_as_undisturbed_ones(study: dict[str, Any], tmp_path: Path) -> None:
    """200 trials that train, with real workers."""
    study["base"]["training"] |= {"num_train_epochs": 1, "eval_steps": 0.5}
    study["base"]["data"]["max_train_samples"] = 24
    changes = {"seeds": list(range(20)), "seeds_at": "all", "worker_timeout": 6, "retries": 50}
    changes |= {"methods": ["lora", "ailora"], "learning_rate": {"values": [1e-3, 2e-3, 3e-3, 5e-3, 1e-2]}}
    results = []
    for name, kills in (("calm", 0), ("fire", 12)):
        here = study | changes | {"output": str(tmp_path / name)}
        storage, _ = create_or_load_study(load_study_config(here))
        command = ["-m", "ailora", "study", "work", storage.url, storage.name]
        # A fast machine may be through before the last one.
        assert finish(command, kills=kills, between=(6, 14)) >= kills // 2
        assert Counter(trial.status for trial in storage.trials()) == {Status.COMPLETE: 200}
        storage.close()
        results.append(table(here))
    pd.testing.assert_frame_equal(*results)


@pytest.mark.slow
def test_a_thousand_trials_are_neither_lost_nor_doubled(study: dict[str, Any], tmp_path: Path) -> None:
    changes = {"methods": ["lora"], "seeds": list(range(334)), "seeds_at": "all"}
    storage, _ = create_or_load_study(load_study_config(study | changes))
    runs = tmp_path / "runs"
    finish(["-m", "tests.studies.worker_process", storage.url, storage.name, str(runs)], kills=0, between=(1, 1))
    ended = Counter(line for line in runs.read_text().splitlines() if line.startswith("end"))
    assert len(ended) == 1002
    assert set(ended.values()) == {1}
    assert Counter(trial.state.name for trial in storage._study.get_trials(deepcopy=False)) == {"COMPLETE": 1002}


@pytest.mark.ci
def test_a_study_that_is_killed_takes_its_workers_along(study: dict[str, Any], tmp_path: Path) -> None:
    """They stop, and give their trials back; also in the background of a shell, where Ctrl-C is ignored."""

    study["base"]["training"]["num_train_epochs"] = 10_000
    file = tmp_path / "study.yaml"
    file.write_text(format_yaml(study))
    command = [sys.executable, "-m", "ailora", "study", "run", str(file), "--workers", "2"]
    process = subprocess.Popen(["bash", "-c", 'trap "" INT; exec "$@"', "-", *command], stdout=subprocess.DEVNULL)
    database = f"sqlite:///{study['output']}/study.db"

    def running() -> int:
        found = TrialStorage.load_or_none(database, "study") if Path(study["output"], "study.db").is_file() else None
        count = sum(trial.status is Status.RUNNING for trial in found.trials()) if found else 0
        if found:
            found.close()
        return count

    _wait(lambda: running() == 2)
    process.kill()
    process.wait()
    _wait(lambda: running() == 0)


def _wait(until: Any) -> None:
    for _ in range(240):
        if until():
            return
        time.sleep(0.5)
    raise AssertionError("it never came")
