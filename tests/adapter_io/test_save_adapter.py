"""`save_adapter`: the files in a folder are those of one adapter, whatever happens while they are written."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import ailora
from ailora.plan.adapter_metadata import AdapterMetadata
from tests.families import FAMILIES, train

BERT, LLAMA = FAMILIES["bert"], FAMILIES["llama"]
FORMS = ["anchored", "stock", "residual"]

KILLED_WHILE_SAVING = """
import os, signal, sys
import ailora
from ailora.plan.adapter_metadata import AdapterMetadata
from tests.families import FAMILIES

model = ailora.adapt(FAMILIES["llama"].model(), rank=2, form=sys.argv[2])
AdapterMetadata.write = lambda self, folder: os.kill(os.getpid(), signal.SIGKILL)
ailora.save_adapter(model, sys.argv[1])
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_that_cannot_be_replaced_stays(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4), tmp_path)
    before = contents(tmp_path)

    def fail(self: AdapterMetadata, folder: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(AdapterMetadata, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=2, form=form), tmp_path)
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.ci
@pytest.mark.parametrize("form", FORMS)
def test_a_kill_while_saving_leaves_the_earlier_adapter(form: str, tmp_path: Path) -> None:
    first = ailora.adapt(LLAMA.model(), rank=4)
    ailora.save_adapter(first, tmp_path)
    before = contents(tmp_path)
    ended = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), form], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert {name: content for name, content in contents(tmp_path).items() if not name.startswith(".")} == before
    loaded = PeftModel.from_pretrained(LLAMA.model(), tmp_path).eval()
    assert torch.equal(LLAMA.output(loaded), LLAMA.output(first))
    ailora.save_adapter(first, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["default", "second"])
def test_other_files_of_the_folder_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    (tmp_path / "notes.txt").write_text("mine")
    folder = ailora.save_adapter(ailora.adapt(BERT.model(), rank=2, adapter_name=name), tmp_path, adapter_name=name)
    assert folder == (tmp_path if name == "default" else tmp_path / name)
    assert {"adapter_config.json", "adapter_model.safetensors", "ailora.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert (tmp_path / "notes.txt").read_text() == "mine"
    card = (tmp_path / "README.md").read_text()
    assert "# Mine" in card
    assert "license: mit" in card
    assert "library_name: peft" in card


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_all_forms_save_the_same_configuration(family: str, tmp_path: Path) -> None:
    """The base model, its revision and, without a task type, its class: what PEFT's automatic classes need."""
    configs = []
    for form in ("anchored", "residual"):
        model = ailora.adapt(FAMILIES[family].model(), rank=4, form=form)
        model.peft_config["default"].revision = "main"
        train(model, FAMILIES[family], steps=1)
        configs.append(json.loads((ailora.save_adapter(model, tmp_path / form) / "adapter_config.json").read_text()))
    for config in configs:
        config["target_modules"] = sorted(config["target_modules"])
    assert configs[0] == configs[1]
    assert configs[0]["auto_mapping"] or configs[0]["task_type"]


def test_the_residual_form_saves_modules_that_share_memory(tmp_path: Path) -> None:
    model = ailora.adapt(BERT.model(), rank=2, form="residual", modules_to_save=["classifier"])
    head = model.get_base_model().get_submodule("classifier").modules_to_save["default"]
    head.bias = torch.nn.Parameter(head.weight.detach().view(-1)[: head.bias.numel()])
    folder = ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(BERT.model(), folder).eval()
    assert torch.allclose(BERT.output(loaded), BERT.output(model.eval()), atol=1e-5)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_text("mine")
    with pytest.raises(ailora.InputError, match="expected a folder, and it is a file"):
        ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=2), tmp_path / "adapter")
    assert (tmp_path / "adapter").read_text() == "mine"


def test_a_folder_in_place_of_a_file_is_refused_before_a_file_is_replaced(tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=2)
    ailora.save_adapter(model, tmp_path)
    (tmp_path / "ailora.json").unlink()
    (tmp_path / "ailora.json").mkdir()
    before = contents(tmp_path)
    with pytest.raises(ailora.InputError, match="it is a folder, and a file is expected"):
        ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4), tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "other").write_text("mine")
    with pytest.raises(ailora.InputError, match="other is a file, and a folder is expected"):
        ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4, adapter_name="other"), tmp_path, adapter_name="other")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_restored_base_keeps_its_tied_weights(name: str) -> None:
    model = LLAMA.model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    expected = LLAMA.output(model)
    adapted = ailora.adapt(model, rank=2, modules_to_save=[name])
    train(adapted, LLAMA)
    restored = ailora.restore_base(adapted)
    assert torch.equal(LLAMA.output(restored), expected)
    assert restored.get_submodule("lm_head").weight is restored.get_submodule("model.embed_tokens").weight


def test_labels_named_after_adapt_are_saved(tmp_path: Path) -> None:
    base = BERT.model()
    config = base.config
    config.pad_token_id = None
    model = ailora.adapt(base, rank=2)
    config.id2label = {index: f"class {index}" for index in range(config.num_labels)}
    config.pad_token_id = 3
    metadata = AdapterMetadata.read(ailora.save_adapter(model, tmp_path) / "ailora.json")
    assert metadata.labels == tuple(config.id2label.values())
    assert metadata.pad_token_id == 3


def test_labels_of_an_adapter_outlast_those_of_its_base(tmp_path: Path) -> None:
    model = BERT.model()
    model.config.id2label = {index: f"own {index}" for index in range(model.config.num_labels)}
    folder = ailora.save_adapter(ailora.adapt(model, rank=2), tmp_path / "first")
    base = BERT.model()
    base.config.id2label = {index: f"of the base {index}" for index in range(base.config.num_labels)}
    again = AdapterMetadata.read(ailora.save_adapter(ailora.resume(base, folder), tmp_path / "again") / "ailora.json")
    assert again.labels == tuple(model.config.id2label.values())


def test_a_rank_waits_while_another_is_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock() -> int:
        lock = os.open(tmp_path / ".files.ailora-lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    model, held = ailora.adapt(LLAMA.model(), rank=2), lock()
    with pytest.raises(ailora.InputError, match="another process is writing to"):
        ailora.save_adapter(model, tmp_path)
    monkeypatch.setattr(importlib.import_module("ailora.adapter_io.save_adapter"), "process_count", lambda: 2)
    threading.Timer(0.3, os.close, [held]).start()
    ailora.save_adapter(model, tmp_path)
    assert torch.equal(LLAMA.output(ailora.resume(LLAMA.model(), tmp_path)), LLAMA.output(model))
