"""Tell what lies at a path by the names of its files; none is read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ailora.errors import InputError

ADAPTER_CONFIG_NAME = "adapter_config.json"


class PathKind(StrEnum):
    """What a folder holds."""

    ADAPTER = "adapter"
    MODEL = "model"
    ANALYSIS = "analysis"
    STUDY = "study"
    RUN = "run"


#: The first file that is there decides: PEFT saves an adapter beside a model's configuration.
_MARKERS = {
    ADAPTER_CONFIG_NAME: PathKind.ADAPTER,
    "config.json": PathKind.MODEL,
    "analysis.json": PathKind.ANALYSIS,
    "study.db": PathKind.STUDY,
    "config.yaml": PathKind.RUN,
    f"adapter/{ADAPTER_CONFIG_NAME}": PathKind.RUN,
}


def detect_path_kind(path: Path | str) -> PathKind | None:
    """Tell what a folder holds.

    Returns:
        None if it is no folder, as a hub id or `builtin:minilm`, or a folder that holds none of these.
    """
    folder = Path(path).expanduser()
    return next((kind for marker, kind in _MARKERS.items() if _is_file(folder / marker)), None)


def resolve_adapter_dir(path: Path | str) -> Path:
    """Return the folder of an adapter's files, given itself or the folder of a run.

    Raises:
        InputError: Neither holds an adapter.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"an adapter is a folder, not {path!r}")
    path = Path(path).expanduser()
    for folder in (path, path / "adapter"):
        if _is_file(folder / ADAPTER_CONFIG_NAME):
            return folder
    raise InputError(f"{path} holds no adapter: no {ADAPTER_CONFIG_NAME} in it, nor in its folder adapter/")


def is_folder(path: Path) -> bool:
    """Return whether a folder is there; a name that no file can have names none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no file can have names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
