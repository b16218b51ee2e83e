"""The folder of an analysis: written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ailora.atomic_io import replacing_folder
from ailora.checkpoints.output_dir import validate_content, validate_inputs_outside
from ailora.errors import InputError

INFO_NAME = "analysis.json"


def validate_output_dir(out: Path, reads: Iterable[Path], *, force: bool) -> None:
    """Refuse a folder that an analysis may not replace.

    Raises:
        InputError: It is a file, holds something that is read, or anything else but an analysis; or an analysis, and
            `force` was not given.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose a folder for the analysis")
    validate_inputs_outside(out, reads)
    if out.is_dir():
        validate_content(out, content="analysis", marks=[INFO_NAME])
    if (out / INFO_NAME).is_file() and not force:
        raise InputError(f"{out} holds an analysis already: choose another folder, or --force to replace it")


@contextmanager
def replacing_analysis(out: Path) -> Iterator[Path]:
    """Fill a folder that takes the place of `out` when it is complete.

    Raises:
        InputError: The system refuses, or another process writes there.
    """
    try:
        with replacing_folder(out) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from None


def read_info(folder: Path) -> dict[str, Any]:
    """`analysis.json`.

    Raises:
        InputError: no analysis there, a damaged one, or one of another format.
    """
    file = folder / INFO_NAME
    if not file.is_file():
        raise InputError(f"{folder} holds no analysis: it has no {INFO_NAME}")
    try:
        info = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if not isinstance(info, dict) or info.get("format") != 1:
        raise InputError(f"{file} is not of format 1, which this version reads")
    return info


def plain(value: Any) -> Any:
    """Plain data for JSON: lists in place of tuples, None in place of what is no finite number."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
