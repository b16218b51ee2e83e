"""`ailora inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Json


def inspect(
    path: Annotated[str, typer.Argument(help="An adapter, a run, or a model (folder, hub id in the cache, builtin:).")],
    json: Json = False,
) -> None:
    """Say what an adapter, a run or a model is: policy, ranks, sizes, spectra, how far it has moved from its anchor."""
    import json as json_module

    from ailora.checkpoints import inspect as look
    from ailora.cli.tables import console, inspection_tables

    found = look(path)
    if json:
        typer.echo(json_module.dumps(found))
        return
    for table in inspection_tables(found):
        console.print(table)
