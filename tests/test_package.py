"""The built wheel, outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path / "dist"), str(ROOT)], check=True)
    (wheel,) = (tmp_path / "dist").glob("ailora-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    script = (
        "import ailora, json; from ailora.recipes.config import task_names; from ailora.cli import app; "
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
