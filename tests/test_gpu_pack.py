"""The measurements for one GPU: shares of the time, results of a part that breaks, a rehearsal on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GPU = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(GPU)
    return import_module("run")


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(GPU)
    return import_module("pack")


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_parts_share_the_time_in_proportion(run: ModuleType) -> None:
    parts = [run.Part("first", 30), run.Part("second", 60), run.Part("third", 10)]
    assert run.share_time(100, parts) == 30
    assert run.share_time(200, parts) == 60


def test_time_that_a_part_leaves_goes_to_the_others(run: ModuleType) -> None:
    parts = [run.Part("first", 30), run.Part("second", 60), run.Part("third", 10)]
    left = 100.0
    limits = []
    for index, used in enumerate((10, 60, 0)):
        limits.append(run.share_time(left, parts[index:]))
        left -= used
    assert limits == [30, pytest.approx(90 * 60 / 70), 30]


def test_a_part_without_time_is_not_started(run: ModuleType) -> None:
    assert run.share_time(3, [run.Part("only", 10)]) == 0
    assert run.share_time(-1, [run.Part("only", 10)]) == 0


def test_the_parts_fit_in_nine_minutes_and_have_scripts(run: ModuleType) -> None:
    assert sum(part.seconds for part in run.PARTS) <= 9 * 60
    assert all((GPU / f"{part.name}.py").is_file() for part in run.PARTS)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("", "done"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended with exit code -9"),
        ("import time; time.sleep(60)", "cut off"),
    ],
)
def test_a_part_that_breaks_keeps_its_results(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, outcome: str
) -> None:
    """Nothing of it is lost that was written before, and the measurements go on."""
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "GRACE_S", 0.5)
    results = tmp_path / "results.jsonl"
    code = f"from records import append_record; from pathlib import Path; append_record(Path({str(results)!r}), {{}})"
    (tmp_path / "part.py").write_text(f"print('measured')\n{code}\n{script}\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(GPU)}
    with (tmp_path / "log.txt").open("wb") as log:
        assert run.run_part(run.Part("part", 1), 3.0, options=[], environment=environment, log=log) == outcome
    assert len(records(results)) == 1
    assert "measured" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_pack_that_is_too_large_names_what_to_leave_out(pack: ModuleType) -> None:
    mib = 2**20
    sizes = {"packages": 20 * mib, "minilm": 28 * mib, "pico-llama": 9 * mib, "e2e": mib}
    pack.validate_size(sizes, mib)
    with pytest.raises(pack.PackError, match=r"^63\.0 MiB are more than the 60 MiB .*: --leave-out pico-llama"):
        pack.validate_size(sizes, 5 * mib)
    with pytest.raises(pack.PackError, match="--leave-out minilm pico-llama e2e"):
        pack.validate_size(sizes, 42 * mib)


def test_archives_survive_the_distribution_over_transfers(
    pack: ModuleType, run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "MAX_MIB", 0.01)
    contents = {"first": b"1" * 10, "second": os.urandom(20_000), "third": os.urandom(5_000)}
    source, joined = tmp_path / "pack", tmp_path / "joined"
    for name, content in contents.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        source.mkdir(exist_ok=True)
        pack.archive(folder, source / f"{name}.tar.xz", pack.TEXT)
    transfers = pack.distribute([source / f"{name}.tar.xz" for name in contents], checkout=1000)
    assert len(transfers) > 2
    assert pack.distribute([source / f"{name}.tar.xz" for name in contents], checkout=1000) == transfers
    with pytest.raises(pack.PackError, match="the checkout alone"):
        pack.distribute([source / "first.tar.xz"], checkout=2**20)
    joined.mkdir()
    for transfer in transfers:
        assert sum(file.stat().st_size for file in transfer.iterdir()) + 1000 <= 0.01 * 2**20
        for file in transfer.iterdir():
            file.rename(joined / file.name)
    unpacked = tmp_path / "unpacked"
    assert run.unpack(joined, unpacked) == [f"{name}.tar.xz" for name in contents]
    assert {file.name: file.read_bytes() for file in unpacked.iterdir()} == contents


def test_every_package_of_the_pack_is_pinned(pack: ModuleType) -> None:
    pins = pack.pinned((*pack.PACKAGES, *pack.SOURCE_PACKAGES))
    assert len(pins) == len(pack.PACKAGES) + len(pack.SOURCE_PACKAGES)
    assert not [pin for pin in pins if pin.startswith(("torch==", "nvidia", "triton"))]


@pytest.mark.slow
def test_a_rehearsal_measures_every_part(run: ModuleType, shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(GPU / "run.py"), "--tiny", "--device", "cpu", "--minutes", "30"]
    completed = subprocess.run(
        [*command, "--out", str(tmp_path), "--pack", str(tmp_path / "none")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-3000:]
    measured = records(tmp_path / "results.jsonl")
    for part in run.PARTS:
        of_part = [record for record in measured if record["part"] == part.name]
        assert of_part[-1] | {"name": "end", "outcome": "done"} == of_part[-1], part
        assert len(of_part) > 1, part
        assert not [record for record in of_part if record.get("outcome") == "failed"], part
    trials = next(record for record in measured if record["name"] == "trials")
    assert trials["trials"] == 1
    assert (tmp_path / "log.txt").stat().st_size > 0
    command = [sys.executable, str(GPU / "tables.py"), str(tmp_path / "results.jsonl")]
    tables = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert all(f"## {part.name}, on cpu: done" in tables for part in run.PARTS)


@pytest.mark.slow
def test_studies_are_rehearsed_packed_without_weights_and_continued(shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(GPU / "studies.py"), "nlu:small:1", "--tiny", "--device", "cpu", "--minutes", "5"]
    folders = ["--pack", str(tmp_path / "none"), "--work", str(tmp_path / "work"), "--out", str(tmp_path)]

    def run_and_read_results(*options: str) -> dict[str, bytes]:
        completed = subprocess.run([*command, *folders, *options], capture_output=True, check=False, text=True)
        assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-3000:]
        with tarfile.open(tmp_path / "nlu-small.tar.xz") as tar:
            files = {name: member.read() for name in tar.getnames() if (member := tar.extractfile(name))}
        assert {"machine.json", "study.db", "result.json"} <= {Path(name).name for name in files}
        assert not [name for name in files if name.endswith(".safetensors")]
        return {name: content for name, content in files.items() if name.endswith("result.json")}

    results = run_and_read_results()
    # As on another machine: same paths, nothing there.
    shutil.rmtree(tmp_path / "work")
    archive = (tmp_path / "nlu-small.tar.xz").rename(tmp_path / "moved.tar.xz")
    assert run_and_read_results("--archive", str(archive)) == results
