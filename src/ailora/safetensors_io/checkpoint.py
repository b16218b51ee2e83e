"""Model checkpoints on disk: a single safetensors file, or shards with an index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ailora.errors import InputError
from ailora.model_formats import refuse_gguf, refuse_pickles
from ailora.path_kind import expand_home, is_directly_in
from ailora.plain_data import read_json_object
from ailora.safetensors_io.header import Header, StoredTensor, read_header
from ailora.safetensors_io.reader import read_tensor
from ailora.safetensors_io.tensor_digest import validate_tensor_digest

_SINGLE_FILE_NAME = "model.safetensors"
_INDEX_NAME = "model.safetensors.index.json"
#: Name of a shard by the convention of transformers: checkpoint name, number, count.
_SHARD_NAME = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Model checkpoint with validated headers. Tensors are read on request.

    Attributes:
        folder: Folder that contains the files.
        tensors: Stored tensors of all shards, by name.
        headers: Header of each shard, by file name.
        index: Path of the index. None if the checkpoint has no index.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    headers: dict[str, Header]
    index: Path | None

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read the index and the headers of a checkpoint.

        Args:
            path: A safetensors file, or a folder that contains `model.safetensors`, `model.safetensors.index.json` with
                its shards, or other safetensors files.

        Returns:
            The checkpoint, with consistent headers and index.

        Raises:
            InputError: The checkpoint is missing or incomplete, or is a GGUF file or a pickle; a header or the index is
                invalid; two files hold the same tensor; or the index points outside its folder.
        """
        path = expand_home(path)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_file():
            refuse_gguf(path)
            refuse_pickles(path)
            return cls._from_files(path.parent, [path])
        if (path / _SINGLE_FILE_NAME).is_file():
            return cls._from_files(path, [path / _SINGLE_FILE_NAME])
        if (path / _INDEX_NAME).is_file():
            return cls._from_index(path, path / _INDEX_NAME)
        # An adapter saved in the folder of its model is not a part of the model.
        files = [file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith("adapter_")]
        if not files:
            refuse_gguf(path)
            refuse_pickles(path)
            raise InputError(f"{path} holds no safetensors files")
        _validate_shard_counts(path, files)
        return cls._from_files(path, files)

    def read(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            InputError: The file cannot be read or has shrunk since its header was read, or the dtype is not supported.
        """
        return read_tensor(self.tensors[name])

    def validate_digests(self) -> None:
        """Refuse tensors that differ from their digest. Files with a digest are read completely.

        Raises:
            InputError: Tensors have changed. The message names the file.
        """
        for name, header in self.headers.items():
            validate_tensor_digest(self.folder / name, header)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(stored.nbytes for stored in self.tensors.values())

    @classmethod
    def _from_files(cls, folder: Path, files: list[Path], index: Path | None = None) -> Checkpoint:
        headers = {file.name: read_header(file) for file in files}
        tensors: dict[str, StoredTensor] = {}
        for header in headers.values():
            for name, stored in header.tensors.items():
                if name in tensors:
                    raise InputError(f"tensor {name!r} is in {tensors[name].file} and again in {stored.file}")
                tensors[name] = stored
        return cls(folder, tensors, headers, index)

    @classmethod
    def _from_index(cls, folder: Path, index: Path) -> Checkpoint:
        weight_map = _read_weight_map(index)
        files = {
            file_name: _resolve_shard(folder, file_name, index) for file_name in dict.fromkeys(weight_map.values())
        }
        checkpoint = cls._from_files(folder, list(files.values()), index)
        for name, file_name in weight_map.items():
            if name not in checkpoint.headers[file_name].tensors:
                raise InputError(
                    f"{index} says that tensor {name!r} is in {files[file_name]}, which does not contain it"
                )
        return checkpoint


def _validate_shard_counts(folder: Path, files: Sequence[Path]) -> None:
    """Refuse an incomplete set of shards in a folder without an index, for example after an interrupted download.

    Raises:
        InputError: The folder contains fewer shards than their names declare.
    """
    matches = [match for file in files if (match := _SHARD_NAME.fullmatch(file.name))]
    for (checkpoint_name, total), count in Counter((match[1], match[2]) for match in matches).items():
        if count < int(total):
            raise InputError(
                f"{folder} holds {count} of the {int(total)} shards of {checkpoint_name}, and no {_INDEX_NAME}"
            )


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} is not an index: expected a weight_map from tensor names to file names")
    if not weight_map:
        raise InputError(f"{index} is an index without tensors: weight_map is empty")
    return weight_map


def _resolve_shard(folder: Path, name: str, index: Path) -> Path:
    """Return the path of a shard.

    Raises:
        InputError: The name or a link leads outside the folder, the name does not end with `.safetensors`, or the file
            is missing.
    """
    # Indexes are often downloaded. Without these checks, an index could make ailora read any file on this machine.
    if name in ("", ".", "..") or any(character in name for character in ("/", "\\", "\0", ":")):
        raise InputError(f"{index} points to {name[:200]!r}, outside its folder")
    if not name.endswith(".safetensors"):
        raise InputError(f"{index} points to {name[:200]!r}, which is not a safetensors file")
    file = folder / name
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{index} points to {name[:200]!r}, which cannot be found ({error})") from None
    if not is_directly_in(file, folder):
        raise InputError(f"{index} points to {name!r}, a link to {target}, outside its folder")
    return file
