"""Checkpoints that are not as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ailora
from ailora.recipes.training.trainer_checkpoints import (
    complete_checkpoints,
    mark_complete,
    newest_checkpoint,
    train_seconds,
)


def make(folder: Path, *steps: int) -> list[Path]:
    made = [folder / f"checkpoint-{step}" for step in steps]
    for checkpoint in made:
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text('{"global_step": 1, "max_steps": 100}')
        (checkpoint / "README.md").touch()
        save_file({"a": torch.ones(64)}, checkpoint / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"a": torch.ones(64)}, checkpoint / name)
        mark_complete(checkpoint, 2.5)
    return made


def test_the_newest_complete_checkpoint_is_taken_and_half_written_ones_go(tmp_path: Path) -> None:
    older, newer, half = make(tmp_path, 9, 10, 11)
    (half / "complete.json").unlink()
    (newer / "README.md").write_text("a card may be changed")
    assert newest_checkpoint(tmp_path) == newer
    assert not half.exists()
    assert complete_checkpoints(tmp_path) == [newer, older]
    assert train_seconds(newer) == 2.5
    assert newest_checkpoint(tmp_path / "none") is None


NAMES = ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_damaged_files_are_named_with_the_way_out(tmp_path: Path, name: str, how: str) -> None:
    _, newer = make(tmp_path, 5, 10)
    file = newer / name
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:20] if how == "cut" else b"x" * len(content))
    with pytest.raises(ailora.InputError) as raised:
        newest_checkpoint(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{file} is damaged (")
    assert message.endswith(f": delete the folder {newer} to go on from checkpoint-5, the one before")
    assert file.exists() == (how != "gone")


def test_one_changed_byte_of_an_optimizers_state_is_seen(tmp_path: Path) -> None:
    (checkpoint,) = make(tmp_path, 5)
    file = checkpoint / "optimizer.pt"
    ones = torch.ones(4).numpy().tobytes()
    file.write_bytes(file.read_bytes().replace(ones, b"\1" + ones[1:], 1))
    with pytest.raises(ailora.InputError, match=r"optimizer\.pt is damaged .* to train from the start$"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\udcff"])
def test_a_damaged_mark_is_named(tmp_path: Path, content: str) -> None:
    (checkpoint,) = make(tmp_path, 5)
    (checkpoint / "complete.json").write_text(content, errors="surrogateescape")
    for look in (lambda: newest_checkpoint(tmp_path), lambda: train_seconds(checkpoint)):
        with pytest.raises(ailora.InputError, match=r"complete\.json is damaged .* to train from the start$"):
            look()


def test_marks_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (checkpoint,) = make(tmp_path, 5)
    (checkpoint / "complete.json").write_text(json.dumps({"train_seconds": 1}))
    assert newest_checkpoint(tmp_path) == checkpoint
