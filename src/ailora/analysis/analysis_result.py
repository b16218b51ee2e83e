"""An analysis: its tables, and the folder that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from ailora.analysis.analysis_folder import INFO_NAME, read_info
from ailora.atomic_io import write_json
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


def write_tables(analysis: Analysis, folder: Path) -> None:
    """Write the tables of an analysis, and `analysis.json`, into an existing folder."""
    for name in _TABLES:
        getattr(analysis, name).to_parquet(folder / f"{name}.parquet", index=False)
    write_json(folder / INFO_NAME, analysis.info)


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
