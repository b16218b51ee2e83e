"""A folder to run snippets in: small tables under the names that the pages use, and a hub cache with small models.

Hub ids resolve as on any machine without a network: `from_pretrained` finds their snapshots in the cache. What lies in
them here is a tiny Llama.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import ailora
from ailora.recipes.demo_task import write_verdicts
from tests.docs.pages import ROOT
from tests.recipes.language import facts, save_llama

#: Hub ids that the pages name. Another one is looked for, and not found, in the cache.
HUB_IDS = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B")
_COMMIT = "0" * 40
#: The README's configuration, for the study files that are based on it.
_SST2 = """
recipe: classification
model: builtin:minilm
data: {train: train.tsv, validation: dev.tsv, text: [sentence]}
output: out/sst2
"""


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


@pytest.fixture(scope="session")
def trained(hub_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of that Llama, as after some training."""
    (folder,) = (hub_cache / f"models--{HUB_IDS[0].replace('/', '--')}" / "snapshots").iterdir()
    model = ailora.adapt(AutoModelForCausalLM.from_pretrained(folder), "ailora", rank=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.01)
    out = tmp_path_factory.mktemp("trained") / "trained"
    ailora.save_adapter(model, out)
    return out


@pytest.fixture
def workplace(tmp_path: Path, hub_cache: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a page's snippets."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for folder in (Path(), Path("out/demo/data")):
        splits = write_verdicts(tmp_path / folder, train=32, held_out=8)
        shutil.copy(splits["validation"], tmp_path / folder / "dev.tsv")
        shutil.copy(splits["test"], tmp_path / folder / "new.tsv")
    for seed, (name, rows) in enumerate({"trainset": 32, "devset": 8, "test": 8, "new": 8}.items()):
        with open(f"{name}.csv", "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("mr", "ref"), *facts(rows, seed=seed)])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(trained, tmp_path / "trained")
    (tmp_path / "sst2.yaml").write_text(_SST2)
    return tmp_path
