"""A folder is known by the names of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ailora
from ailora.analysis.analysis_result import load_analysis
from ailora.checkpoints import inspect
from ailora.path_kind import PathKind, detect_path_kind, resolve_adapter_dir
from ailora.safetensors_io import Checkpoint
from ailora.weights.weight_source import open_checkpoint_source


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["adapter_config.json"], PathKind.ADAPTER),
        (["adapter_config.json", "config.json"], PathKind.ADAPTER),
        (["config.json"], PathKind.MODEL),
        (["config.json", "adapter/adapter_config.json"], PathKind.MODEL),
        (["config.yaml"], PathKind.RUN),
        (["adapter/adapter_config.json"], PathKind.RUN),
        (["study.db"], PathKind.STUDY),
        (["analysis.json"], PathKind.ANALYSIS),
        (["notes.txt"], None),
    ],
)
def test_the_marker_files_decide(files: list[str], kind: PathKind | None, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert detect_path_kind(tmp_path) is kind


@pytest.mark.parametrize("path", ["org/name", "builtin:minilm", "a\0b", "x" * 5000, ""])
def test_what_is_no_folder_has_no_kind(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert detect_path_kind(path) is None


def test_a_run_is_asked_for_its_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ailora.InputError, match=r"holds no adapter: neither adapter_config\.json nor adapter/"):
        resolve_adapter_dir(tmp_path)
    (tmp_path / "adapter" / "adapter_config.json").touch()
    assert resolve_adapter_dir(tmp_path) == resolve_adapter_dir(tmp_path / "adapter") == tmp_path / "adapter"


def test_a_home_of_nobody_is_a_missing_path() -> None:
    path = "~no-such-user/model"
    base = torch.nn.Linear(2, 2)
    for read in (inspect, Checkpoint.open, load_analysis, lambda path: open_checkpoint_source(base, path, {})):
        with pytest.raises(ailora.InputError, match="no-such-user"):
            read(path)
