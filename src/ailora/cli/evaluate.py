"""`ailora evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    data: Annotated[str | None, typer.Option(help="A file with the run's columns; default: its validation.")] = None,
) -> None:
    """Score a finished run and print its metrics as JSON."""
    import json

    from ailora.recipes.registry import finished_run

    typer.echo(json.dumps(finished_run(run).evaluate(data)))
