"""`ailora export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Force, Json


def export(
    adapter: Annotated[Path, typer.Argument(help="The folder of an adapter, or of a run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Recompress to this rank.")] = None,
    energy: Annotated[float | None, typer.Option(help="Recompress, keeping this share of every |dW|^2.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a trained adapter as the plain LoRA that servers read: exact, or of a smaller rank."""
    from ailora.checkpoints import export as write
    from ailora.cli.tables import console, error_table, print_report

    made = write(adapter, out, rank=rank, energy=energy, dtype=dtype, force=force)
    if not json:
        console.print(error_table(made.errors))
    print_report(f"written to {out}", {k: v for k, v in made.to_dict().items() if json or k != "errors"}, json=json)
    if not json:
        typer.echo(f"A server needs max_lora_rank >= {made.rank}.")
