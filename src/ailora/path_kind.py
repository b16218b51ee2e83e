"""Detect the kind of a folder by the names of its files, without reading any."""

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


#: File -> kind. The first file that exists decides, and the order matters: PEFT may save an adapter beside the
#: configuration of a model, and a folder of both is an adapter.
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
        Kind of the folder. None if the path is no folder (a hub id, `builtin:minilm`) or the content is unknown.
    """
    folder = expand_home(path)
    return next((kind for marker, kind in _MARKERS.items() if is_file(folder / marker)), None)


def resolve_adapter_dir(path: Path | str) -> Path:
    """Return the folder of an adapter's files, given this folder or the folder of a run.

    Raises:
        InputError: Neither the folder nor its subfolder `adapter` holds an adapter.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"an adapter is a folder, got {path!r}")
    path = expand_home(path)
    for folder in (path, path / "adapter"):
        if is_file(folder / ADAPTER_CONFIG_NAME):
            return folder
    raise InputError(f"{path} holds no adapter: no {ADAPTER_CONFIG_NAME} in it, nor in its folder adapter/")


def expand_home(path: Path | str) -> Path:
    """Expand `~`; the home of a user who is not known here stays as it is written, and names nothing."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_folder(path: Path) -> bool:
    """Return whether a folder is there; a name that no file can have names none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no file can have (too long, with a null byte) names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file, after links, lies in a folder, or among the blobs of the hub's cache beside it."""
    home = folder.resolve()
    allowed = [home]
    # The hub's cache links from its snapshots to the blobs beside them.
    snapshot = next((parent for parent in (home, *home.parents) if parent.parent.name == "snapshots"), None)
    if snapshot is not None:
        allowed.append(snapshot.parent.parent / "blobs")
    return file.resolve().parent in allowed
