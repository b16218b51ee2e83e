"""Studies of a tiny BERT, and storages of both kinds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ailora.studies.study_config import StudyConfig, load_study_config
from ailora.studies.study_design import StudyDesign
from tests.recipes.conftest import config, tiny_bert, verdicts
from tests.tiers import in_tiers

__all__ = ["config", "tiny_bert", "verdicts"]


@pytest.fixture
def study(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A study file of two methods, three rates and three seeds."""
    base = {key: value for key, value in config.items() if key != "output"}
    base["adapter"] = {"rank": 4}
    return {
        "base": base,
        "methods": ["lora", "ailora"],
        "learning_rate": {"values": [1e-3, 3e-3, 1e-2]},
        "seeds": [0, 1, 2],
        "output": str(tmp_path / "study"),
    }


@pytest.fixture
def loaded(study: dict[str, Any]) -> StudyConfig:
    return load_study_config(study)


@pytest.fixture
def design(loaded: StudyConfig) -> StudyDesign:
    return StudyDesign(loaded)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database on a server of this test's own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    programs = found[-1].parent
    folder = tmp_path_factory.mktemp("postgres")
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        # The folders of a test let only their owner in.
        shared = Path(tempfile.gettempdir()).resolve()
        for place in [folder, *folder.parents]:
            if shared in place.resolve().parents:
                place.chmod(0o755)
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments], user=user, check=True, capture_output=True, cwd=folder, timeout=120
        )

    data = str(folder / "data")
    call("initdb", "-D", data, "-A", "trust", "-U", "ailora")
    call(
        "pg_ctl",
        "-D",
        data,
        "-w",
        "-l",
        str(folder / "server.log"),
        "-o",
        f"-k {folder} -c listen_addresses=''",
        "start",
    )
    try:
        call("createdb", "-h", str(folder), "-U", "ailora", "studies")
        yield f"postgresql+psycopg://ailora@/studies?host={folder}"
    finally:
        # A server whose folder is gone has ended: pytest removes the folders of earlier runs.
        with suppress(subprocess.CalledProcessError):
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture(params=in_tiers(["sqlite", "postgresql"], fast=["sqlite"]))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return request.getfixturevalue("postgres")
