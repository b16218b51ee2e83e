"""The core without the extras, in the environment of the tests: their packages are hidden."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ailora.cli.extras import EXTRAS, OPTIONAL_PACKAGES, describe_missing_extra

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Hides packages as if they were not installed: `find_spec` returns None, and an import fails.
_HIDE = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

HIDDEN = set({hidden!r})
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
sys.argv = {arguments!r}
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


def _closure(requirements: list[str]) -> set[str]:
    """The distributions that `pip install` brings for requirements without extras."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += requires(name) or []
    return found


def test_the_core_installs_few_packages_beyond_torch_transformers_and_peft() -> None:
    ours = _closure(PROJECT["dependencies"]) - _closure(["torch", "transformers", "peft"])
    assert ours == {"jaxtyping", "scipy", "threadpoolctl", "wadler-lindig"}


@pytest.mark.ci
def test_the_core_works_without_the_extras(tmp_path: Path) -> None:
    allowed = _closure(PROJECT["dependencies"]) | {"ailora", "pip", "setuptools"}
    hidden = [
        package
        for package, distributions in packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & allowed
    ]
    assert set(hidden) >= {"datasets", "trl", "pandas", "optuna", "matplotlib", "torchao"}
    script = _HIDE.format(hidden=hidden, arguments=[str(ROOT / "tests/core_script.py"), str(tmp_path)])
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def test_every_package_of_an_extra_is_named() -> None:
    """Or its absence would end in a traceback."""
    installed: dict[str, set[str]] = {}
    for package, distributions in packages_distributions().items():
        for name in distributions:
            installed.setdefault(canonicalize_name(name), set()).add(package)
    core = _closure(PROJECT["dependencies"])
    for extra in set(EXTRAS.values()) - {"demo"}:  # whose model says itself what installs it
        for line in PROJECT["optional-dependencies"][extra]:
            name = canonicalize_name(Requirement(line).name)
            if name != "ailora" and name not in core:
                assert installed[name] & OPTIONAL_PACKAGES, name


def test_only_a_missing_extra_is_explained() -> None:
    def explained(name: str | None, command: str = "train") -> str | None:
        return describe_missing_extra(ModuleNotFoundError("no", name=name), command=command)

    assert explained("ailora.nothing") is None
    assert explained("somebody_elses") is None
    assert explained(None) is None
    assert explained("datasets.no_such_module") is None  # datasets is here: a bug
    assert explained("trl", command="init") is None
