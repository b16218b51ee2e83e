"""Checkpoints that are not as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ailora
from ailora.recipes.training.trainer_checkpoints import (
    find_newest_checkpoint,
    list_complete_checkpoints,
    mark_complete,
    read_train_seconds,
)


def find_newest(folder: Path) -> Path | None:
    return find_newest_checkpoint(folder, is_of_run=lambda _: True)


def make(folder: Path, *steps: int) -> list[Path]:
    made = [folder / f"checkpoint-{step}" for step in steps]
    for step, checkpoint in zip(steps, made, strict=True):
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 100}))
        (checkpoint / "README.md").touch()
        save_file({"a": torch.ones(64)}, checkpoint / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"a": torch.ones(64)}, checkpoint / name)
        mark_complete(checkpoint, 2.5)
    return made


def test_the_newest_complete_checkpoint_is_taken_and_half_written_ones_of_ours_go(tmp_path: Path) -> None:
    older, newer, half, foreign = make(tmp_path, 9, 10, 11, 12)
    for begun in (half, foreign):
        (begun / "complete.json").unlink()
    (newer / "README.md").write_text("a card may be changed")
    assert find_newest_checkpoint(tmp_path, is_of_run=half.__eq__) == newer
    assert not half.exists()
    assert len([*foreign.iterdir()]) == 6
    assert list_complete_checkpoints(tmp_path) == [newer, older]
    assert read_train_seconds(newer) == 2.5
    assert find_newest(tmp_path / "none") is None


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
        find_newest(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{file} is damaged (")
    assert message.endswith(f": delete the folder {newer} to resume from checkpoint-5, the previous checkpoint")
    assert file.exists() == (how != "gone")


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json"])
def test_one_changed_bit_is_seen(tmp_path: Path, name: str) -> None:
    (checkpoint,) = make(tmp_path, 5)
    content = bytearray((checkpoint / name).read_bytes())
    content[-3] ^= 1
    (checkpoint / name).write_bytes(content)
    with pytest.raises(ailora.InputError, match=rf"{name} is damaged .* to train from the start$"):
        find_newest(tmp_path)


MARKS = ["", "{", "[]", "{}", "\udcff", "[" * 10_000, '{"train_seconds": NaN}', f'{{"train_seconds": {"1" * 5000}}}']
FILES = ["null", "[]", '{"a": null}', '{"a": {"bytes": "1"}}', '{"\\ud83d": 1}']


@pytest.mark.parametrize("content", [*MARKS, *(f'{{"train_seconds": 1, "files": {files}}}' for files in FILES)])
def test_a_damaged_mark_is_named(tmp_path: Path, content: str) -> None:
    (checkpoint,) = make(tmp_path, 5)
    (checkpoint / "complete.json").write_text(content, errors="surrogateescape")
    for look in (lambda: find_newest(tmp_path), lambda: read_train_seconds(checkpoint)):
        with pytest.raises(ailora.InputError, match=r"complete\.json is damaged .* to train from the start$"):
            look()


@pytest.mark.parametrize("with_sizes", [True, False])
def test_marks_of_earlier_versions_are_read(tmp_path: Path, with_sizes: bool) -> None:
    (checkpoint,) = make(tmp_path, 5)
    files = {"files": {name: (checkpoint / name).stat().st_size for name in NAMES}} if with_sizes else {}
    (checkpoint / "complete.json").write_text(json.dumps({"train_seconds": 1, **files}))
    assert find_newest(tmp_path) == checkpoint
    for state in ("{}", '{"global_step": 100, "max_steps": 100}', '{"global_step": 5, "max_steps": 0}'):
        (checkpoint / "trainer_state.json").write_text(state)
        with pytest.raises(ailora.InputError, match=r"trainer_state\.json is damaged"):
            find_newest(tmp_path)
