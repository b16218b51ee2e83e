"""`ailora inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Json


def inspect(
    path: Annotated[
        str, typer.Argument(help="Adapter, run or model (a folder, a hub id in the cache, or builtin:minilm).")
    ],
    as_json: Json = False,
) -> None:
    """Describe an adapter, a run or a model: policy, ranks, sizes, spectra, distance from the anchor."""
    from ailora.checkpoints import inspect as inspect_path
    from ailora.cli.tables import console, inspection_tables, print_json

    inspection = inspect_path(path)
    if as_json:
        print_json(inspection)
    else:
        console.print(*inspection_tables(inspection))
