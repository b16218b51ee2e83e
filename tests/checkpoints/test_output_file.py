"""One file that a command writes: what it may replace, and what it says where it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ailora.checkpoints.output_file import validate_output_file
from ailora.checkpoints.output_path import explain_failed_write, writing
from ailora.errors import InputError

PAGE = '<html><head><meta name="generator" content="ailora 0.1.0">'
OTHERS = {
    "thesis.tex": "mine",
    "page.html": "<html>about ailora 0.1.0</html>",
    "drawing.svg": "<svg><dc:title>ailora 0.1.0</dc:title></svg>",
    "notes.csv": "a,b",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_not_ours_is_replaced_by_force_alone(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(OTHERS[name])
    with pytest.raises(InputError, match=rf"{name} exists, and has no mark.* --force to replace it"):
        validate_output_file(file, force=False)
    assert validate_output_file(file, force=True) == file


def test_a_file_that_says_it_is_ours_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(PAGE)
    for name in ("report.html", "new.csv"):
        assert validate_output_file(str(tmp_path / name), force=False) == tmp_path / name


def test_what_is_read_is_never_replaced(tmp_path: Path) -> None:
    run, study = tmp_path / "run", tmp_path / "study.yaml"
    run.mkdir()
    for file in (run / "result.json", study):
        file.write_text("read")
        with pytest.raises(InputError, match=r"is an input.*: choose another output"):
            validate_output_file(file, force=True, reads=[run, study])
    (run / "report.html").write_text(PAGE)
    validate_output_file(run / "report.html", force=False, reads=[run])


def test_links_folders_and_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.html")
    for place, message in (
        ("link.html", "is a link"),
        (".", "is a folder"),
        ("pipe.html", "is not a regular file"),
        ("missing/report.html", "there is no folder"),
        ("a\0b.html", r"expected a path to write to, got 'a\\x00b|null"),
        ("x" * 5000, "File name too long"),
        ("y" * 300 + "/a.html", "File name too long"),
        ("", "expected a path to write to|is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            validate_output_file(tmp_path / place, force=True)


def test_a_refusal_of_the_system_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write a\.csv: No space left on device"), writing(Path("a.csv")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_failures_to_write_are_known_whichever_library_met_them(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    forbidden = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "run" / "log.jsonl"))
    serializing = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert explain_failed_write(full, tmp_path) == "No space left on device"
    assert explain_failed_write(forbidden, tmp_path / "run") == "Permission denied"
    # A folder whose name begins alike is another folder.
    assert explain_failed_write(forbidden, tmp_path / "r") is None
    assert explain_failed_write(serializing, tmp_path) == "No space left on device"
    assert explain_failed_write(Exception("File too large (os error 27)"), tmp_path) == "File too large"
    with pytest.raises(RuntimeError) as raised:
        torch.save({"a": torch.ones(2)}, tmp_path / "missing" / "a.pt")
    assert "Parent directory" in str(raised.value)
    assert explain_failed_write(raised.value, tmp_path) is None
    for other in (forbidden, ConnectionError("the hub"), RuntimeError("out of memory"), KeyboardInterrupt()):
        assert explain_failed_write(other, tmp_path / "elsewhere") is None
