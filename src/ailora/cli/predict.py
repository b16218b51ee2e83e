"""`ailora predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import ForceFile, Run
from ailora.formatting import escape_controls, pluralize


def predict(
    run: Run,
    input: Annotated[str, typer.Option(help="File with the input columns of the run's data.")],
    output: Annotated[Path, typer.Option(help="File to write: .tsv, .csv, .jsonl or .parquet.")],
    force: ForceFile = False,
) -> None:
    """Write the predictions of a finished run for each row of a file."""
    from ailora.recipes.registry import load_run

    count = load_run(run).predict(input, output, force=force)
    typer.echo(f"{pluralize(count, 'prediction')} written to {escape_controls(str(output))}")
