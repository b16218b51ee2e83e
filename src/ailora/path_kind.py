"""Detect the kind of a folder by the names of its files, without reading the files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ailora.errors import InputError

ADAPTER_CONFIG_NAME = "adapter_config.json"


class PathKind(StrEnum):
    """Kind of a folder's content."""

    ADAPTER = "adapter"
    MODEL = "model"
    ANALYSIS = "analysis"
    STUDY = "study"
    RUN = "run"


#: File -> kind of a folder with this file. The first existing file decides. Adapters come before models, because PEFT
#: may save an adapter beside the configuration of a model.
_MARKERS = {
    ADAPTER_CONFIG_NAME: PathKind.ADAPTER,
    "config.json": PathKind.MODEL,
    "analysis.json": PathKind.ANALYSIS,
    "study.db": PathKind.STUDY,
    "config.yaml": PathKind.RUN,
    f"adapter/{ADAPTER_CONFIG_NAME}": PathKind.RUN,
}


def detect_path_kind(path: Path | str) -> PathKind | None:
    """Detect the kind of a folder.

    Returns:
        Kind of the folder. None for a path that is not a folder (a hub id, `builtin:minilm`), and for unknown content.
    """
    folder = expand_home(path)
    return next((kind for marker, kind in _MARKERS.items() if is_file(folder / marker)), None)


def resolve_adapter_dir(path: Path | str) -> Path:
    """Find the folder with an adapter's files: `path` itself, or its subfolder `adapter` if `path` is a run.

    Raises:
        InputError: Neither the folder nor its subfolder `adapter` holds an adapter.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"expected the folder of an adapter, got {path!r}")
    path = expand_home(path)
    for folder in (path, path / "adapter"):
        if is_file(folder / ADAPTER_CONFIG_NAME):
            return folder
    raise InputError(f"{path} holds no adapter: neither {ADAPTER_CONFIG_NAME} nor adapter/{ADAPTER_CONFIG_NAME} exists")


def expand_home(path: Path | str) -> Path:
    """Expand `~` and `~user`. If the user is unknown, return the path unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder. False for invalid paths (too long, or with a null byte)."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether a path is a file. False for invalid paths (too long, or with a null byte)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_directly_in(file: Path, folder: Path) -> bool:
    """Return whether a file, with links resolved, is directly in a folder.

    For a folder in a snapshot of the hub's cache, the blobs of the same repository count as well.
    """
    resolved = folder.resolve()
    allowed = [resolved]
    # Files in `snapshots/<commit>/` of the hub's cache are links into `blobs/` beside `snapshots/`.
    snapshot = next((parent for parent in (resolved, *resolved.parents) if parent.parent.name == "snapshots"), None)
    if snapshot is not None:
        allowed.append(snapshot.parent.parent / "blobs")
    return file.resolve().parent in allowed
