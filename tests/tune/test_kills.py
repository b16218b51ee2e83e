"""A search that is killed at random places, and run again by the same command, ends as one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml
from ailora.tune.tune_run import open_search
from tests.tune.test_tune_run import read_outcome

ROOT = Path(__file__).resolve().parents[2]


def _start(file: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ailora", "tune", str(file), "--workers", str(workers)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output.decode()
    return output.decode()


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _kill(process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Kill the command, one of its workers, or all of them at once."""
    workers = _children(process)
    victims = chance.choice([[process.pid], workers[:1], [*workers, process.pid]])
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _prepare(tuned: dict[str, Any], tmp_path: Path, name: str) -> Path:
    """Write the file of a search whose workers count as dead after two seconds."""
    here = tuned | {"output": str(tmp_path / name)}
    storage, _ = open_search(load_config(here))
    storage.update_config(storage.config | {"worker_timeout": 2})
    storage.close()
    file = tmp_path / f"{name}.yaml"
    file.write_text(format_yaml(here))
    return file


@pytest.mark.slow
def test_ten_kills_change_nothing(tuned: dict[str, Any], tmp_path: Path) -> None:
    calm = _prepare(tuned, tmp_path, "calm")
    _finish(_start(calm, 1))
    disturbed = _prepare(tuned, tmp_path, "disturbed")
    chance = random.Random(0)
    process = _start(disturbed, 2)
    kills = 0
    while kills < 10:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(4, 14))
        if process.poll() is None:
            _kill(process, chance)
            kills += 1
            time.sleep(0.5)
        elif process.returncode == 0:
            break
        if process.poll() not in (None, 0):
            assert process.returncode == -signal.SIGKILL
            process.communicate()
            process = _start(disturbed, 2)
    _finish(process)
    # A fast machine may be through before the last kill.
    assert kills >= 5
    assert read_outcome(tmp_path / "disturbed") == read_outcome(tmp_path / "calm")


@pytest.mark.ci
def test_one_worker_and_two_give_the_same(tuned: dict[str, Any], tmp_path: Path) -> None:
    tuned["tune"] |= {"budget": "2x", "policy": ["ailora"]}
    for workers in (1, 2):
        text = _finish(_start(_prepare(tuned, tmp_path, f"workers{workers}"), workers))
        assert "one seed" in text
    assert read_outcome(tmp_path / "workers1") == read_outcome(tmp_path / "workers2")
