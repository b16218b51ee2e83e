"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ailora.atomic_io import replacing, write_text
from ailora.safetensors_io import header_bytes, read_blocks, read_header, read_rows, read_tensor
from ailora.safetensors_io.header_writer import TensorSpec


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fail() -> None:
        with replacing(file) as stream:
            stream.write(b"ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    write_text(file, "nëw")
    assert file.read_text(encoding="utf-8") == "nëw"


def test_what_a_kill_left_is_taken_again(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.partial").write_text("of an attempt that was killed, and longer than what comes")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("entries", [1, 3, 7, 100])
def test_blocks_are_the_tensor(entries: int, tmp_path: Path) -> None:
    tensor = torch.randn(5, 4).to(torch.bfloat16)
    data = tensor.view(torch.uint8).numpy().tobytes()
    (tmp_path / "m.safetensors").write_bytes(header_bytes([TensorSpec("a", "BF16", (5, 4))]) + data)
    stored = read_header(tmp_path / "m.safetensors").tensors["a"]
    assert torch.equal(torch.cat(list(read_blocks(stored, entries))).reshape(5, 4), tensor)
    assert torch.equal(read_tensor(stored), tensor)
    for start, stop in ((0, 5), (1, 3), (4, 5), (2, 2)):
        assert torch.equal(read_rows(stored, start, stop), tensor[start:stop])
