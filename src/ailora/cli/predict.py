"""`ailora predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Run


def predict(
    run: Run,
    input: Annotated[str, typer.Option(help="A file with the run's text columns.")],
    output: Annotated[Path, typer.Option(help="Where to write: .tsv, .csv, .jsonl or .parquet.")],
) -> None:
    """Predict with a finished run."""
    from ailora.recipes.registry import load_run

    rows = load_run(run).predict(input, output)
    typer.echo(f"{rows} predictions written to {output}")
