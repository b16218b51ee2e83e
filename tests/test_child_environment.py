"""Processes that we start import nothing from the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ailora.child_environment import safe_environment, safe_import_path

SOURCE = str(Path(__file__).resolve().parents[1] / "src")
#: Modules that our processes import, of Python and of the packages that we use.
SHADOWED = ("multiprocessing", "typer", "torch", "concurrent", "threadpoolctl", "optuna", "encodings")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules leave a file when they are imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in SHADOWED:
        script = f"open({str(folder / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(99)\n"
        (folder / f"{name}.py").write_text(script)
    return folder


@pytest.fixture(params=["", f"{os.pathsep}{SOURCE}", f"{SOURCE}{os.pathsep}"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Values of PYTHONPATH with an entry that is empty."""
    monkeypatch.setenv("PYTHONPATH", request.param)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return request.param


def test_empty_entries_of_the_path_go_and_the_others_stay(path: str) -> None:
    environment = safe_environment()
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment.get("PYTHONPATH") == (SOURCE if SOURCE in path else None)


def test_the_environment_is_as_before_after_the_body(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = (dict(os.environ), [*sys.path])
    with safe_import_path():
        assert "" not in sys.path
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert (dict(os.environ), [*sys.path]) == before


_POOL = """
import os
from ailora.distributed import run_in_processes
if __name__ == "__main__":
    os.chdir({folder!r})
    print(sorted(result for _, result in run_in_processes(abs, [-1, -2], workers=2)))
"""
_TRIAL = """
import os
from ailora.studies import trial_runner
context = trial_runner._multiprocessing_context()
if __name__ == "__main__":
    os.chdir({folder!r})
    with trial_runner.safe_import_path():
        process = context.Process(target=print, args=("[1, 2]",))
        process.start()
    process.join()
"""


@pytest.mark.ci
@pytest.mark.parametrize("script", [_POOL, _TRIAL], ids=["pool", "fork server"])
def test_processes_of_a_script_do_not_look_into_the_current_folder(script: str, hostile: Path, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(script.format(folder=str(hostile)))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    made = subprocess.run([sys.executable, str(file)], env=environment, capture_output=True, text=True, check=False)
    assert made.stdout.split("\n")[0] == "[1, 2]", made.stderr
    assert not (hostile / "ran").exists()


@pytest.mark.ci
@pytest.mark.parametrize("safe", [{}, {"PYTHONSAFEPATH": "1"}], ids=["as it is", "as documented"])
def test_a_launchers_process_does_not_look_into_the_current_folder(hostile: Path, safe: dict[str, str]) -> None:
    """`python -m ailora`, without and with the variable that the documentation gives to launchers."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment |= {"PYTHONPATH": SOURCE, **safe}
    command = [sys.executable, "-m", "ailora", "cache", "show"]
    made = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not (hostile / "ran").exists()
