"""`ailora export`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Adapter, Force, Json, Out


def export(
    adapter: Adapter,
    out: Out,
    rank: Annotated[int | None, typer.Option(min=1, help="Compress to this rank.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Compress, but keep this share of |dW|^2 in every module, such as 0.99.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Data type to write: fp32, bf16 or fp16.")] = "fp32",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a trained adapter as a plain LoRA for inference servers, exactly or compressed to a smaller rank."""
    from ailora.checkpoints import export as export_adapter
    from ailora.cli.tables import console, error_table, print_report

    report = export_adapter(adapter, out, rank=rank, energy=energy, dtype=dtype, force=force)
    content = report.to_dict()
    if not as_json:
        console.print(error_table(report.errors))
        # The table above already shows the error of each module.
        del content["errors"]
    print_report(f"written to {out}", content, as_json=as_json)
    if not as_json:
        vllm_rank = report.vllm_max_lora_rank
        vllm = f"--max-lora-rank {vllm_rank}" if vllm_rank else "512 at most, so export with --rank 512"
        typer.echo(f"Set max_lora_rank of a server to at least {report.rank} (vLLM: {vllm}).")
