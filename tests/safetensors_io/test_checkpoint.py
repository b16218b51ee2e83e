"""Checkpoints of one file or many, and indexes that point elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ailora.errors import InputError
from ailora.safetensors_io import Checkpoint
from tests.safetensors_io.test_header import FUZZ

INDEX = "model.safetensors.index.json"


def sharded(folder: Path, **weight_map: str) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(3)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(2, 2)}, folder / "two.safetensors")
    found = {"a": "one.safetensors", "b": "two.safetensors", **weight_map}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": found}))
    return folder


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    found = Checkpoint.open(sharded(tmp_path))
    assert set(found.tensors) == {"a", "b"}
    assert found.read("a").tolist() == [1, 1, 1]
    assert (found.nbytes, found.index) == (28, tmp_path / INDEX)


def test_a_part_of_the_shards_without_their_index_is_refused(tmp_path: Path) -> None:
    """A download, or a merge, that was cut short."""
    for number in (1, 3):
        save_file({f"layer.{number}": torch.ones(3)}, tmp_path / f"model-0000{number}-of-00003.safetensors")
    with pytest.raises(InputError, match=r"holds 2 of the 3 shards of model, and no model\.safetensors\.index\.json"):
        Checkpoint.open(tmp_path)
    save_file({"layer.2": torch.ones(3)}, tmp_path / "model-00002-of-00003.safetensors")
    assert set(Checkpoint.open(tmp_path).tensors) == {"layer.1", "layer.2", "layer.3"}


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(Checkpoint.open(tmp_path).tensors) == {"c"}
    assert set(Checkpoint.open(tmp_path / "two.safetensors").tensors) == {"b"}


def test_an_adapter_beside_the_model_is_not_part_of_it(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    save_file({"y": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert set(Checkpoint.open(tmp_path).tensors) == {"x"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../elsewhere.safetensors", "outside its folder"),
        ("/etc/passwd", "outside its folder"),
        ("sub/dir.safetensors", "outside its folder"),
        ("..\\x.safetensors", "outside its folder"),
        ("c:x.safetensors", "outside its folder"),
        ("..", "outside its folder"),
        ("", "outside its folder"),
        ("nul\0.safetensors", "outside its folder"),
        ("config.json", "not a safetensors file"),
        ("three.safetensors", "cannot be found"),
        ("link.safetensors", "a link to .* outside its folder"),
        ("loop.safetensors", "cannot be found"),
    ],
)
def test_an_index_may_not_point_outside_its_folder(name: str, message: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", c=name)
    save_file({"c": torch.ones(1)}, tmp_path / "elsewhere.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.open(folder)
    assert INDEX in str(caught.value)


def test_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    sharded(snapshot)
    for name in ("one.safetensors", "two.safetensors"):
        (snapshot / name).rename(blobs / name[:3])
        (snapshot / name).symlink_to(Path("../../blobs") / name[:3])
    assert set(Checkpoint.open(snapshot).tensors) == {"a", "b"}


def test_an_index_that_does_not_fit_its_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensor 'c' is in .*one\.safetensors, which does not contain it"):
        Checkpoint.open(sharded(tmp_path, c="one.safetensors"))
    sharded(tmp_path)
    save_file({"a": torch.ones(3), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match=r"tensor 'a' is in .*one\.safetensors and again in .*two\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}']
)
def test_what_is_no_index(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match="index"):
        Checkpoint.open(tmp_path)


class Bomb:
    """What a pickle can do."""

    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=r"never opened\. If you trust the checkpoint, convert it once: python -c"):
            Checkpoint.open(path)
    assert not (tmp_path / "exploded").exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no safetensors files"):
        Checkpoint.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Checkpoint.open(tmp_path / "none")


def _nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(children, max_size=3), st.dictionaries(st.text(max_size=8), children, max_size=3))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)), _nested, max_leaves=8
)
names = st.one_of(
    st.sampled_from(["one.safetensors", "two.safetensors", "../one.safetensors", "/one.safetensors", INDEX]),
    st.text(max_size=12),
    json_values,
)
indexes = st.one_of(
    json_values, st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=4), names, max_size=4)})
)


def fuzz_index(folder: Path, index: Any, raw: bytes | None) -> None:
    sharded(folder)
    (folder / INDEX).write_bytes(json.dumps(index).encode() if raw is None else raw)
    try:
        found = Checkpoint.open(folder)
    except InputError:
        return
    assert all(stored.file.parent == folder for stored in found.tensors.values())


@given(indexes, st.one_of(st.none(), st.binary(max_size=60)))
@settings(FUZZ, max_examples=200)
def test_fuzzed_indexes_are_read_or_refused(tmp_path: Path, index: Any, raw: bytes | None) -> None:
    fuzz_index(tmp_path, index, raw)


@pytest.mark.slow
@given(indexes, st.one_of(st.none(), st.binary(max_size=60)))
@settings(FUZZ, max_examples=3000)
def test_many_fuzzed_indexes(tmp_path: Path, index: Any, raw: bytes | None) -> None:
    fuzz_index(tmp_path, index, raw)
