"""A folder to run snippets in: small tables under the names that the pages use, and a hub cache with small models.

Hub ids resolve as on any machine without a network: `from_pretrained` finds their snapshots in the cache. What lies in
them here is a tiny Llama.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from ailora.recipes.verdicts import write_verdicts
from tests.docs.pages import ROOT
from tests.recipes.language import facts, save_llama

#: Hub ids that the pages name. Another one is looked for, and not found, in the cache.
HUB_IDS = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B")
_COMMIT = "0" * 40


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub in which every id of `HUB_IDS` is a tiny Llama."""
    cache = tmp_path_factory.mktemp("hub")
    llama = save_llama(tmp_path_factory.mktemp("llama"))
    for hub_id in HUB_IDS:
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(llama, repository / "snapshots" / _COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(_COMMIT)
    return cache


@pytest.fixture
def workplace(tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a page's snippets."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for folder in (Path(), Path("out/demo/data")):
        splits = write_verdicts(tmp_path / folder, train=96, held_out=24)
        shutil.copy(splits["validation"], tmp_path / folder / "dev.tsv")
        shutil.copy(splits["test"], tmp_path / folder / "new.tsv")
    for seed, (name, rows) in enumerate({"trainset": 96, "devset": 16, "test": 8, "new": 8}.items()):
        with open(f"{name}.csv", "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("mr", "ref"), *facts(rows, seed=seed)])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path
