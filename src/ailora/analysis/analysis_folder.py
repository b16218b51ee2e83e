"""The folder of an analysis: written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ailora.atomic_io import write_text
from ailora.errors import InputError

INFO_NAME = "analysis.json"


def validate_output_dir(out: Path, reads: Iterable[Path], *, force: bool) -> None:
    """Refuse a folder that an analysis may not take.

    Raises:
        InputError: it is a file, holds something that is read, or anything else but an analysis; or an analysis, and
            `force` was not given.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose a folder for the analysis")
    for source in reads:
        if source.exists() and (out.resolve() in (source.resolve(), *source.resolve().parents)):
            raise InputError(f"{source} is read and lies in {out}: choose another folder to write")
    if out.is_dir() and (others := sorted(entry.name for entry in out.iterdir())):
        if not (out / INFO_NAME).is_file():
            raise InputError(f"{out} is not empty and holds no analysis (it holds {others[0]}): choose another folder")
        if not force:
            raise InputError(f"{out} holds an analysis already: choose another folder, or --force to replace it")


def write_whole(out: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `out`, and put it in its place when it is complete.

    Raises:
        InputError: the system refuses.
    """
    partial, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    try:
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        try:
            write(partial)
            if out.exists():
                out.rename(old)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from None


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Write `analysis.json`."""
    write_text(folder / INFO_NAME, json.dumps(info, indent=2, allow_nan=False) + "\n")


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
