"""A checkpoint on disk: one safetensors file, or shards with an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ailora.errors import InputError
from ailora.plain_data import read_json_object
from ailora.safetensors_io.header import Header, StoredTensor, read_header
from ailora.safetensors_io.reader import read_tensor

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, none of them read.

    Attributes:
        folder: where its files are.
        tensors: by name, over all shards.
        headers: of each shard, by the name of its file.
        index: the file of the index, where there is one.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    headers: dict[str, Header]
    index: Path | None

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read the index and the headers of a checkpoint.

        Args:
            path: a folder with `model.safetensors`, with `model.safetensors.index.json` and its shards, or with other
                safetensors files; or one safetensors file.

        Raises:
            InputError: there is none, a header or the index lies, an index points outside its folder, or the checkpoint
                is in a pickle format, which is never opened.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise InputError(f"there is no {path}")
        if path.is_file():
            _refuse_pickle([path] if not path.name.endswith(".safetensors") else [], path)
            return cls._from_files(path.parent, [path])
        if (path / _SINGLE).is_file():
            return cls._from_files(path, [path / _SINGLE])
        if (path / _INDEX).is_file():
            return cls._from_index(path, path / _INDEX)
        files = [file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith("adapter_")]
        if not files:
            _refuse_pickle([file for kind in _PICKLES for file in sorted(path.glob(kind))], path)
            raise InputError(f"{path} holds no safetensors files")
        return cls._from_files(path, files)

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            InputError: as `read_tensor`.
        """
        return read_tensor(self.tensors[name])

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.size for stored in self.tensors.values())

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
        weight_map = _weight_map(index)
        files = {name: _shard(folder, name, index) for name in dict.fromkeys(weight_map.values())}
        checkpoint = cls._from_files(folder, list(files.values()), index)
        for tensor, name in weight_map.items():
            if tensor not in checkpoint.headers[name].tensors:
                raise InputError(f"{index} says that tensor {tensor!r} is in {files[name]}, which does not hold it")
        return checkpoint


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} is no index: it has no weight_map from tensors to files")
    if not weight_map:
        raise InputError(f"{index} names no tensor")
    return weight_map


def _shard(folder: Path, name: str, index: Path) -> Path:
    """The file of a shard, which may not lie elsewhere. The hub's cache links from snapshots to blobs beside them."""
    if name in ("", ".", "..") or any(sign in name for sign in ("/", "\\", "\0", ":")):
        raise InputError(f"{index} points to {name[:200]!r}, outside its folder")
    if not name.endswith(".safetensors"):
        raise InputError(f"{index} points to {name[:200]!r}, which is no safetensors file")
    file = folder / name
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{index} points to {name[:200]!r}, which is not there ({error})") from None
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if real.parent not in allowed:
        raise InputError(f"{index} points to {name!r}, a link to {real}, outside its folder")
    return file


def _refuse_pickle(files: list[Path], path: Path) -> None:
    """Pickles run code when they are opened."""
    if files:
        folder = path if path.is_dir() else path.parent
        raise InputError(
            f"{files[0]} is not a safetensors file, and pickled checkpoints are never opened. Convert it once, if you "
            f"trust it: python -c \"import transformers as t; m = '{folder}'; "
            "c = t.AutoConfig.from_pretrained(m); getattr(t, c.architectures[0]).from_pretrained(m, "
            "use_safetensors=False).save_pretrained('CONVERTED')\""
        )
