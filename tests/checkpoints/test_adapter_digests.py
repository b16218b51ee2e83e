"""Digests of an adapter: a changed bit is named by every reader, a file that was saved again stays usable."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

import ailora
from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_adapter import load_peft_adapter
from ailora.checkpoints import export, init, inspect, merge, verify
from ailora.safetensors_io import read_header
from tests.checkpoints.conftest import LLAMA, loaded
from tests.families import train

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def flip_bit(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("writer", ["save_adapter", "init", "export"])
def test_a_changed_bit_is_named_by_every_reader(writer: str, base: Path, copied: Path, tmp_path: Path) -> None:
    if writer == "init":
        init(str(base), tmp_path / "init", rank=4)
    if writer == "export":
        export(copied, tmp_path / "export", rank=2)
    folder = copied if writer == "save_adapter" else tmp_path / writer
    # The lowest bit of a float's mantissa: every file, shape and number is still a valid one.
    flip_bit(folder / WEIGHTS, -4)
    readers: list[Callable[[], object]] = [
        lambda: inspect(str(folder)),
        lambda: verify(folder, str(base)),
        lambda: merge(str(base), folder, tmp_path / "merged"),
        lambda: export(folder, tmp_path / "out"),
        lambda: ailora.resume(loaded(base), folder),
        lambda: load_peft_adapter(loaded(base), folder),
    ]
    for read in readers:
        with pytest.raises(ailora.InputError, match=r"adapter_model\.safetensors is damaged"):
            read()
    assert not (tmp_path / "merged" / "config.json").exists()


def test_tensors_that_changed_their_names_are_refused(copied: Path) -> None:
    """Their bytes are the same: queries of two layers are swapped."""
    content = (copied / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length]
    for old, new in ((b"layers.0.", b"layers.X."), (b"layers.1.", b"layers.0."), (b"layers.X.", b"layers.1.")):
        header = header.replace(old, new)
    (copied / WEIGHTS).write_bytes(content[:8] + header + content[8 + length :])
    with pytest.raises(ailora.InputError, match="is damaged"):
        AdapterCheckpoint.open(copied)


def test_an_adapter_that_peft_saved_again_has_no_digests_and_is_read(base: Path, copied: Path) -> None:
    model = PeftModel.from_pretrained(loaded(base), copied, is_trainable=True)
    train(model, LLAMA, steps=2, rate=1e-2)
    model.save_pretrained(copied)
    verdict = verify(copied, str(base))
    assert next(check for check in verdict.checks if check.name == "digests").passed is None
    assert (copied / "ailora.json").is_file()


def test_tensors_that_another_program_writes_in_another_order_are_the_same(copied: Path) -> None:
    tensors = load_file(copied / WEIGHTS)
    save_file(dict(reversed(tensors.items())), copied / WEIGHTS, read_header(copied / WEIGHTS).metadata)
    AdapterCheckpoint.open(copied)


def test_an_edited_configuration_is_used_with_a_warning(
    base: Path, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "moved/elsewhere"}))
    with caplog.at_level("WARNING", logger="ailora"):
        merge(str(base), copied, tmp_path / "out")
    assert (
        "adapter_config.json has changed since it was written with the weights: it was edited, or is damaged"
        in caplog.text
    )
    check = next(check for check in verify(copied, str(base)).checks if check.name == "digests")
    assert (check.passed, check.detail) == (
        None,
        "the tensors are unchanged, but these files were edited: adapter_config.json",
    )


def test_an_adapter_of_an_earlier_version_has_no_digests_and_is_read(base: Path, copied: Path, tmp_path: Path) -> None:
    save_file(load_file(copied / WEIGHTS), copied / WEIGHTS, {"format": "pt"})
    merge(str(base), copied, tmp_path / "out")
    assert verify(copied, str(base)).passed
