"""Files that are there whole or not at all."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import stat
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ailora import atomic_io
from ailora.atomic_io import (
    append_text,
    format_json,
    grant_umask,
    replacing_file,
    replacing_folder,
    restore_non_finite,
    write_json,
    write_text,
)
from ailora.errors import InputError
from ailora.safetensors_io import TensorSpec, header_bytes, read_blocks, read_header, read_rows, read_tensor


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fail() -> None:
        with replacing_file(file) as stream:
            stream.write(b"ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    write_text(file, "nëw")
    assert file.read_text(encoding="utf-8") == "nëw"


def test_what_a_kill_left_is_taken_again(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.ailora-partial").write_text("of an attempt that was killed, and longer than what comes")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def fill(folder: Path, text: str, *, fails: bool = False) -> None:
    with replacing_folder(folder) as partial:
        (partial / "a.txt").write_text(text)
        if fails:
            raise RuntimeError("half way")


def test_a_folder_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "out"
    fill(folder, "old")
    with pytest.raises(RuntimeError, match="half way"):
        fill(folder, "ne", fails=True)
    assert (folder / "a.txt").read_text() == "old"
    fill(folder, "new")
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("a.txt", "new")]
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_an_exchange_of_folders_that_a_kill_cut_in_two_is_undone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, "old")
    folder.rename(tmp_path / ".out.ailora-old")
    (tmp_path / ".out.ailora-partial").mkdir()
    (tmp_path / ".out.ailora-partial" / "b.txt").write_text("of an attempt that was killed")
    with pytest.raises(RuntimeError, match="half way"):
        fill(folder, "ne", fails=True)
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("a.txt", "old")]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_process_at_a_time_fills_a_folder(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("first")
        with pytest.raises(InputError, match=r"another process is writing to .*out"):
            fill(tmp_path / "out", "second")
    assert (tmp_path / "out" / "a.txt").read_text() == "first"


def test_no_other_process_empties_a_complete_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compete(files: Iterable[Path]) -> None:
        monkeypatch.undo()
        with pytest.raises(InputError, match=r"another process is writing to .*out"):
            fill(tmp_path / "out", "second")
        grant_umask(files)

    # The first writer grants permissions and flushes its files to the disk after the body.
    monkeypatch.setattr(atomic_io, "grant_umask", compete)
    fill(tmp_path / "out", "first")
    assert [(p.name, p.read_text()) for p in (tmp_path / "out").iterdir()] == [("a.txt", "first")]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_process_at_a_time_writes_a_file(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "a.txt") as stream:
        stream.write(b"first")
        with pytest.raises(InputError, match=r"another process is writing to .*a\.txt"):
            write_text(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_links_are_replaced_or_refused_and_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep.txt").write_text("mine")
    for name in ("a.txt", ".a.txt.ailora-partial"):
        (tmp_path / name).symlink_to(victim / "keep.txt")
    write_text(tmp_path / "a.txt", "new")
    (tmp_path / ".out.ailora-partial").symlink_to(victim)
    fill(tmp_path / "out", "new")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "log").symlink_to(victim / "keep.txt")
    for write in (lambda: fill(tmp_path / "link", "new"), lambda: append_text(tmp_path / "log", "new")):
        with pytest.raises(InputError, match="is a link, and nothing is written through links"):
            write()
    assert {file.name: file.read_text() for file in victim.iterdir()} == {"keep.txt": "mine"}
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "out" / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


def test_files_that_a_library_kept_for_one_user_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing_folder(tmp_path / "out") as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / "a").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "out/deep", "out/deep/a")]
    assert modes == [0o750, 0o750, 0o640]


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


def test_a_tensor_without_rows_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(header_bytes([TensorSpec("a", "F32", (0, 4))]))
    stored = read_header(tmp_path / "m.safetensors").tensors["a"]
    assert read_tensor(stored).shape == read_rows(stored, 0, 0).shape == (0, 4)


def test_numbers_that_are_not_finite_are_named_in_valid_json(tmp_path: Path) -> None:
    data = {"loss": math.nan, "history": [{"perplexity": math.inf}, (-math.inf, 1.0)], "name": "é"}
    write_json(tmp_path / "a.json", data)
    for text in (format_json(data), format_json(data, ascii_only=False), (tmp_path / "a.json").read_text()):
        written = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        assert written == {"loss": "NaN", "history": [{"perplexity": "Infinity"}, ["-Infinity", 1.0]], "name": "é"}
        restored = restore_non_finite(written)
        assert math.isnan(restored["loss"])
        assert restored["history"] == [{"perplexity": math.inf}, [-math.inf, 1.0]]


#: Write what they also read, or hash it: keys, numbers and texts that are checked to be finite before, and the
#: configuration of a model, in the form in which transformers reads infinite numbers.
_OTHER_JSON = {
    *("writer.py", "adapter_metadata.py", "output_dir.py", "request.py", "module_tasks.py", "svd_cache.py"),
    *("study_design.py", "trial.py", "trial_selection.py", "html.py", "trial_keys.py", "tensor_digest.py"),
    "merge_adapter.py",
}


def test_json_is_written_in_one_place() -> None:
    source = Path(__file__).parents[1] / "src" / "ailora"
    writers = {
        file.name
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and ast.unparse(node.value) == "json"
    }
    assert writers - _OTHER_JSON == {"atomic_io.py"}


@pytest.mark.parametrize(("code", "fatal"), [(errno.EINVAL, False), (errno.EACCES, False), (errno.EIO, True)])
def test_file_systems_that_cannot_flush_folders_are_written_to(
    code: int, fatal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with pytest.raises(OSError, match=os.strerror(code)) if fatal else nullcontext():
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(OSError, match=os.strerror(code)) if fatal else nullcontext():
        fill(tmp_path / "folder", "new")
    assert fatal or (tmp_path / "a.txt").read_text() == "new"


def test_file_systems_without_locks_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, **options: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(atomic_io.FileLock, "acquire", refuse)
    fill(tmp_path / "folder", "new")
    assert (tmp_path / "folder" / "a.txt").read_text() == "new"
