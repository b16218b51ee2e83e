"""An analysis: its tables, and the folder that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from ailora.analysis.analysis_folder import read_info, write_info, write_whole
from ailora.errors import InputError

_TABLES = ("embedding", "deltas", "spectra")


@dataclass(frozen=True)
class Analysis:
    """The tables of an analysis; what each column is: `docs/analysis.md`.

    Attributes:
        info: what was asked, what was found in one number each, what was left out: the content of `analysis.json`.
        embedding: a row for each point: model, layer, role, head, and where it lies in the plane.
        deltas: a row for each update: model, layer, role, norms, ranks, shares of the subspaces of `W`.
        spectra: a row for each weight: model, layer, role, singular values, energy of the bands, intruders.
    """

    info: dict[str, Any]
    embedding: pd.DataFrame
    deltas: pd.DataFrame
    spectra: pd.DataFrame


def write_analysis(analysis: Analysis, out: Path, draw: Callable[[Path], None]) -> None:
    """Write the folder of an analysis, whole or not at all.

    Args:
        analysis: what to write.
        out: the folder.
        draw: writes the pictures into a folder.

    Raises:
        InputError: it cannot be written.
    """

    def write(partial: Path) -> None:
        for name in _TABLES:
            getattr(analysis, name).to_parquet(partial / f"{name}.parquet", index=False)
        draw(partial / "figures")
        write_info(partial, analysis.info)

    write_whole(out, write)


def load_analysis(path: Path | str) -> Analysis:
    """An analysis from its folder.

    Raises:
        InputError: no analysis there, a damaged one, or one of another format.
    """
    folder = Path(path).expanduser()
    info = read_info(folder)
    tables = {}
    for name in _TABLES:
        file = folder / f"{name}.parquet"
        try:
            tables[name] = pd.read_parquet(file)
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise InputError(f"{file} cannot be read: {error}") from None
    return Analysis(info, **tables)
