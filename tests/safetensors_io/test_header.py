"""Headers that lie are found out before a byte of data is read."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from ailora.errors import InputError
from ailora.safetensors_io import Header, TensorSpec, header_bytes, read_header, read_tensor

#: Function-scoped folders are fine here: every example writes its file anew.
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def file_of(folder: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_it_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "c": torch.randn(2, 3).to(torch.bfloat16),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(1.5, dtype=torch.float16),
        "flags": torch.tensor([True, False, True]),
        "eight": torch.randn(4).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    found = {name: read_tensor(stored) for name, stored in header.tensors.items()}
    assert header.metadata == {"format": "pt"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else True


def test_safetensors_reads_what_it_plans(tmp_path: Path) -> None:
    planned = [TensorSpec("x", "F32", (2, 3)), TensorSpec("y", "BF16", (5,)), TensorSpec("z", "I64", ())]
    data = os.urandom(sum(tensor.nbytes for tensor in planned))
    (tmp_path / "m.safetensors").write_bytes(header_bytes(planned, {"format": "pt"}) + data)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(file.keys()) == {"x", "y", "z"}
        assert file.get_tensor("y").dtype is torch.bfloat16
    assert read_tensor(read_header(tmp_path / "m.safetensors").tensors["y"]).shape == (5,)


def test_elements_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    header = {"b": entry("I8", [3], [0, 3]), "f": entry("F32", [2], [3, 11])}
    file = file_of(tmp_path, header, b"\1\2\3" + struct.pack("<2f", 1.5, -2.0))
    assert read_tensor(read_header(file).tensors["f"]).tolist() == [1.5, -2.0]


def test_reading_changes_no_byte_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    read_tensor(read_header(tmp_path / "m.safetensors").tensors["a"]).fill_(7)
    assert (tmp_path / "m.safetensors").read_bytes() == before


LIES: dict[str, tuple[object, bytes, int | None, str]] = {
    "past the end": (
        {"a": entry(offsets=[0, 8])},
        b"",
        None,
        r"is truncated: tensor 'a' ends at byte \d+, but the file has \d+",
    ),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, b"0" * 12, None, "tensor 'b' overlaps tensor 'a'"),
    "gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, b"0" * 20, None, "4 bytes between tensor 'a' and tensor 'b'"),
    "bytes left": ({"a": entry()}, b"0" * 9, None, "has 1 bytes after tensor 'a'"),
    "huge shape": ({"a": entry(shape=[2**40, 2**40])}, b"0" * 8, None, "'a', F32 .* takes .* bytes"),
    "wrong size": ({"a": entry("F64")}, b"0" * 8, None, r"'a', F64 \[2\], takes 16 bytes, but its offsets span 8"),
    "negative": ({"a": entry(shape=[-2])}, b"0" * 8, None, r"has the shape \[-2\]"),
    "fraction": ({"a": entry(shape=[2.0])}, b"0" * 8, None, "has the shape"),
    "backwards": ({"a": entry(offsets=[8, 0])}, b"0" * 8, None, "its offsets span -8"),
    "dtype": ({"a": entry("F33")}, b"0" * 8, None, "unknown dtype 'F33'; expected one of"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"0" * 8, None, "'a' has no dtype"),
    "list": ([1, 2], b"", None, "the header is not a JSON object"),
    "not JSON": (b"{nonsense", b"", None, "the header is not valid JSON"),
    "twice": (
        b'{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b"0",
        None,
        "'a' occurs twice",
    ),
    "deep": (b'{"a":' + b"[" * 100_000, b"", None, "the header is not valid JSON"),
    "long": ({}, b"", 2**40, "expected a header of 1099511627776 bytes"),
    "longer than the file": ({}, b"", 1000, "expected a header of 1000 bytes"),
    "many sides": ({"a": entry(shape=[2**62] * 20)}, b"0" * 8, None, "'a', F32 .* takes .* bytes"),
    "too many sides": ({"a": entry(shape=[1] * 100_000)}, b"0" * 4, None, "has the shape"),
    "half a character": (
        b'{"\\ud800":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b"0",
        None,
        "an invalid name",
    ),
    "metadata": ({"__metadata__": {"format": 3}}, b"", None, "__metadata__ in the header must map strings to strings"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_name_the_file_and_the_tensor(lie: str, tmp_path: Path) -> None:
    header, data, length, message = LIES[lie]
    file = file_of(tmp_path, header, data, length=length)
    with pytest.raises(InputError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is not a regular file"), (tmp_path / "none", "cannot read .*No such file")):
        with pytest.raises(InputError, match=message):
            read_header(path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(InputError, match="is not a regular file"):
        read_header(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"\1\2\3")
    with pytest.raises(InputError, match="it has only 3 bytes"):
        read_header(tmp_path / "short")


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4096)}, tmp_path / "m.safetensors")
    stored = read_header(tmp_path / "m.safetensors").tensors["a"]
    with (tmp_path / "m.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(InputError, match="has shrunk: tensor 'a'"):
        read_tensor(stored)


def judged(file: Path) -> Header | None:
    """The header, or None where it is refused, naming the file: nothing else may come of it."""
    refusal = str(file)
    header = None
    try:
        header = read_header(file)
        for stored in header.tensors.values():
            if stored.dtype in ("F32", "F64", "I8"):
                assert read_tensor(stored).numel() * read_tensor(stored).itemsize == stored.nbytes
    except InputError as error:
        refusal = str(error)
    assert str(file) in refusal
    return header


sizes = st.one_of(st.integers(-3, 20), st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]), st.floats(), st.none())
entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(
            st.sampled_from(["F32", "BF16", "I8", "F4", "F64", "F8_E4M3"]), st.text(max_size=3), st.none()
        ),
        "shape": st.one_of(st.lists(sizes, max_size=3), st.integers(), st.none()),
        "data_offsets": st.one_of(st.lists(sizes, min_size=1, max_size=3), st.none()),
    }
)
headers = st.dictionaries(st.one_of(st.text(max_size=6), st.just("__metadata__")), entries, max_size=4)


def fuzz_headers(folder: Path, header: Any, data: bytes, shift: int) -> None:
    text = json.dumps(header).encode()
    judged(file_of(folder, text, data, length=max(0, len(text) + shift)))


def fuzz_bytes(folder: Path, flips: list[tuple[int, int]], cut: int) -> None:
    """A file that safetensors wrote, with bytes changed and its end cut off."""
    file = folder / "model.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(5, dtype=torch.int8)}, file, {"format": "pt"})
    content = bytearray(file.read_bytes())
    for position, value in flips:
        content[position % len(content)] = value
    file.write_bytes(content[: max(0, len(content) - cut)])
    judged(file)


@given(headers, st.binary(max_size=64), st.integers(-2, 2))
@settings(FUZZ, max_examples=300)
def test_fuzzed_headers_are_read_or_refused(tmp_path: Path, header: Any, data: bytes, shift: int) -> None:
    fuzz_headers(tmp_path, header, data, shift)


flips = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)


@given(flips, st.integers(0, 300))
@example([(0, 255), (7, 255)], 0)
@settings(FUZZ, max_examples=300)
def test_fuzzed_files_are_read_or_refused(tmp_path: Path, flips: list[tuple[int, int]], cut: int) -> None:
    fuzz_bytes(tmp_path, flips, cut)


@pytest.mark.slow
@given(headers, st.binary(max_size=64), st.integers(-2, 2))
@settings(FUZZ, max_examples=5000)
def test_many_fuzzed_headers(tmp_path: Path, header: Any, data: bytes, shift: int) -> None:
    fuzz_headers(tmp_path, header, data, shift)


@pytest.mark.slow
@given(flips, st.integers(0, 300))
@settings(FUZZ, max_examples=5000)
def test_many_fuzzed_files(tmp_path: Path, flips: list[tuple[int, int]], cut: int) -> None:
    fuzz_bytes(tmp_path, flips, cut)
