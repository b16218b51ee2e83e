"""The built wheel, outside the checkout, and what says which version it is."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import ailora
from ailora.cli.extras import OPTIONAL_PACKAGES
from ailora.recipes.config.yaml_file import parse_yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert version("ailora") == ailora.__version__
    cited = parse_yaml((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == ailora.__version__
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == ailora.__version__


def test_the_changelog_keeps_its_form() -> None:
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
    for title in re.findall(r"^## (.+)$", text, re.MULTILINE):
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - (unreleased|\d{4}-\d\d-\d\d)", title), title


def test_the_workflow_runs_what_a_change_must_pass_on_every_python() -> None:
    """The same script as `.ci/run`, on the versions that the package claims."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    job = parse_yaml((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == claimed == ["3.11", "3.12", "3.13"]
    assert job["steps"][-1]["run"] == "bash .ci/run"
    assert project["requires-python"] == ">=3.11,<3.14"


def test_no_module_needs_a_module_of_unix_to_be_imported() -> None:
    """Of the standard library's; they are imported where they are used, if they are there."""
    unix = {"fcntl", "grp", "pwd", "resource", "termios"}
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) and node.module else set()
            assert not names & unix, file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True)
    (made,) = folder.glob("ailora-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Data files too: tasks, templates, styles, scripts."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("ailora/")}
    tracked = subprocess.run(
        ["git", "ls-files", "src/ailora"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    found = tracked or [
        path.relative_to(ROOT).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {name.removeprefix("src/") for name in found} <= packed
    kinds = {Path(name).suffix for name in packed}
    assert {".py", ".yaml", ".typed"} <= kinds
    assert {path.suffix for path in (SOURCE / "ailora/report").rglob("*.*") if "__pycache__" not in path.parts} <= kinds


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    script = (
        "import ailora, json; from ailora.recipes.config.loader import task_names; from ailora.cli import app; "
        "print(json.dumps([ailora.__file__, task_names(), ailora.adapt.__name__]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    file, tasks, name = json.loads(made.stdout)
    assert Path(file).is_relative_to(tmp_path / "site")
    assert {"cola", "sst2"} <= set(tasks)
    assert name == "adapt"
    assert (tmp_path / "site" / "ailora" / "py.typed").exists()


@pytest.mark.slow
def test_the_wheel_without_extras_is_the_core_and_the_demo_runs_the_readme(wheel: Path, tmp_path: Path) -> None:
    """In a new environment: nothing of the tests' own is there."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "-c", ROOT / "constraints.txt"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: Path | str) -> str:
        made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        return made.stdout

    run(*install, wheel)
    made = json.loads(run(python, ROOT / "tests" / "core_script.py", tmp_path).splitlines()[-1])
    assert Path(made["file"]).is_relative_to(tmp_path)
    assert not OPTIONAL_PACKAGES - {"jinja2"} & set(made["modules"])  # torch brings jinja2
    run(*install, f"ailora[demo] @ {wheel.as_uri()}")
    (example, *_) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    run(python, "-c", example)
