"""`ailora predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import ForceFile, Run
from ailora.formatting import escape_controls


def predict(
    run: Run,
    input: Annotated[str, typer.Option(help="A file with the run's text columns.")],
    output: Annotated[Path, typer.Option(help="Where to write: .tsv, .csv, .jsonl or .parquet.")],
    force: ForceFile = False,
) -> None:
    """Predict with a finished run."""
    from ailora.recipes.registry import load_run

    rows = load_run(run).predict(input, output, force=force)
    typer.echo(f"{rows} predictions written to {escape_controls(str(output))}")
