"""Results of an analysis, and their folder."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow

from ailora.analysis.table_ops import Row
from ailora.atomic_io import link_error, replacing_folder, write_json
from ailora.checkpoints.folder_lock import validate_content
from ailora.checkpoints.output_file import has_ailora_mark
from ailora.checkpoints.output_path import resolve_output_path, validate_inputs_outside, writing
from ailora.errors import InputError
from ailora.path_kind import expand_home
from ailora.plain_data import read_json_object

_INFO_NAME = "analysis.json"
_TABLES = ("embedding", "deltas", "spectra", "directions")


@dataclass(frozen=True)
class Analysis:
    """Tables of an analysis, with the columns of `docs/analysis.md`.

    Attributes:
        info: Content of `analysis.json`: models, settings, findings, and notes about weights left out.
        embedding: Row for each weight or attention head: model, layer, role, head, and coordinates in the planes of
            t-SNE and PCA.
        deltas: Row for each update of a base weight `W`: model, layer, role, norms, ranks, energy shares in subspaces
            of `W`.
        spectra: Row for each weight: model, layer, role, singular values, energy shares of the principal, middle and
            minor ones, number of intruder dimensions.
        directions: Row for each update, side and bin of singular directions: energy share, and the share expected by
            chance. Empty unless requested.
    """

    info: Row
    embedding: pd.DataFrame
    deltas: pd.DataFrame
    spectra: pd.DataFrame
    directions: pd.DataFrame

    @property
    def models(self) -> list[str]:
        """Names of the fine-tuned models."""
        return list(self.info["after"])

    @property
    def roles(self) -> list[str]:
        """Names of the analysed roles."""
        return list(self.info["settings"]["roles"])


def write_tables(analysis: Analysis, folder: Path) -> None:
    """Write the tables of an analysis and `analysis.json` into an existing folder."""
    for name in _TABLES:
        getattr(analysis, name).to_parquet(folder / f"{name}.parquet", index=False)
    write_json(folder / _INFO_NAME, analysis.info)


def load_analysis(path: Path | str) -> Analysis:
    """Load an analysis from its folder.

    Args:
        path: Folder written by `write_analysis`.

    Returns:
        Analysis. The table `directions` is empty if the folder was written before direction profiles existed.

    Raises:
        InputError: The folder holds no analysis, or the analysis is damaged or has an unknown format.
    """
    folder = expand_home(path)
    info = _read_info(folder)
    tables = {}
    for name in _TABLES:
        file = folder / f"{name}.parquet"
        if name == "directions" and "directions" not in info.get("settings", {}):
            # Folders written before direction profiles existed have no such file.
            tables[name] = pd.DataFrame(columns=["model", "role"])
            continue
        try:
            tables[name] = pd.read_parquet(file)
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise InputError(f"{file} cannot be read: {error}") from None
    return Analysis(info, **tables)


def _read_info(folder: Path) -> Row:
    file = folder / _INFO_NAME
    if not file.is_file():
        raise InputError(f"{folder} holds no analysis: it has no {_INFO_NAME}")
    try:
        info = read_json_object(file, allow_nan=True)
    except InputError as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if info.get("format") != 1:
        raise InputError(f"{file}: format must be 1, got {info.get('format')!r}")
    return info


def validate_output_dir(out: Path | str, reads: Iterable[Path], *, force: bool) -> Path:
    """Validate the output folder of an analysis.

    Args:
        out: Output folder, which may be missing, empty, or an earlier analysis.
        reads: Input files and folders, which must be outside `out`.
        force: Whether to replace an earlier analysis.

    Returns:
        Output folder with `~` expanded.

    Raises:
        InputError: The path does not end with a name (`.`, `..`, `/`), is a file or is a link; the folder contains an
            input, or files of another origin; or it contains an analysis, and `force` is False.
    """
    out = resolve_output_path(out)
    # A temporary folder beside `out` is later renamed to `out`, so `out` needs a name.
    if out.name in ("", ".."):
        raise InputError(f"expected the name of a folder to write, got {str(out)!r}")
    if out.is_symlink():
        raise link_error(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose a folder for the analysis")
    validate_inputs_outside(out, reads)
    if out.is_dir():
        validate_content(out, content="analysis", marks=[_INFO_NAME])
    if (out / _INFO_NAME).is_file():
        if not force:
            raise InputError(f"{out} already holds an analysis: choose another folder, or use --force to replace it")
        _validate_nothing_else(out)
    return out


def _validate_nothing_else(out: Path) -> None:
    """Refuse to replace a folder that holds files other than those of an analysis."""
    # Replacing a folder removes all of its files.
    expected_names = {_INFO_NAME, "figures", *(f"{name}.parquet" for name in _TABLES)}
    figures = out / "figures"
    foreign = [entry for entry in out.iterdir() if entry.name not in expected_names or entry.is_symlink()]
    if figures.is_dir():
        foreign += [entry for entry in figures.iterdir() if not entry.is_file() or not has_ailora_mark(entry)]
    if foreign:
        raise InputError(f"{min(foreign)} is not part of the analysis that --force would replace: move it away")


@contextmanager
def replacing_analysis(out: Path) -> Generator[Path, None, None]:
    """Open a temporary folder, which replaces `out` atomically if the body succeeds.

    Yields:
        Path of the temporary folder.

    Raises:
        InputError: The folder cannot be written, or another process is writing to it.
    """
    with writing(out), replacing_folder(out) as partial:
        yield partial


def to_plain_data(record: Row) -> Row:
    """Convert a record for JSON: tuples to lists, non-finite numbers to None."""
    return {str(key): _to_plain(value) for key, value in record.items()}


def _to_plain(value: object) -> object:
    if isinstance(value, dict):
        return to_plain_data(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    # JSON has no NaN: Python would write `NaN` without quotes, and strict parsers would refuse the file.
    return None if isinstance(value, float) and not math.isfinite(value) else value
