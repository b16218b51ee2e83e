"""`ailora export`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Adapter, Force, Json, Out


def export(
    adapter: Adapter,
    out: Out,
    rank: Annotated[int | None, typer.Option(min=1, help="Recompress to this rank.")] = None,
    energy: Annotated[float | None, typer.Option(help="Recompress, keeping this share of every |dW|^2.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a trained adapter as the plain LoRA that servers read: exact, or of a smaller rank."""
    from ailora.checkpoints import export as write
    from ailora.cli.tables import console, error_table, print_report

    report = write(adapter, out, rank=rank, energy=energy, dtype=dtype, force=force)
    figures = report.to_dict()
    if not as_json:
        console.print(error_table(report.errors))
        del figures["errors"]
    print_report(f"written to {out}", figures, as_json=as_json)
    if not as_json:
        allowed = report.vllm_max_lora_rank
        vllm = f"vLLM: --max-lora-rank {allowed}" if allowed else "vLLM takes 512 at most: export with --rank 512"
        typer.echo(f"A server needs max_lora_rank >= {report.rank}; {vllm}.")
