"""`ailora verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Json


def verify(
    adapter: Annotated[Path, typer.Argument(help="The folder of an adapter, or of a run.")],
    base: Annotated[str, typer.Option(help="Local folder, hub id in the cache, or builtin:minilm.")],
    json: Json = False,
) -> None:
    """Check that an adapter is the one that was made for this base; exit code 1 if it is not."""
    import json as json_module

    from ailora.checkpoints import verify as check
    from ailora.cli.tables import check_table, console

    verdict = check(adapter, base)
    if json:
        typer.echo(json_module.dumps(verdict.to_dict()))
    else:
        console.print(check_table(verdict))
    if not verdict.passed:
        raise typer.Exit(1)
