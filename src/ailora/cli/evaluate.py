"""`ailora evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Run


def evaluate(
    run: Run,
    data: Annotated[
        str | None, typer.Option(help="File with the columns of the run's data; default: the run's validation data.")
    ] = None,
) -> None:
    """Evaluate a finished run, and print loss and metrics as JSON."""
    from ailora.cli.tables import print_json
    from ailora.recipes.registry import load_run

    print_json(load_run(run).evaluate(data))
