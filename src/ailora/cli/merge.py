"""`ailora merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Adapter, Force, Json, Model, Out


def merge(
    base: Model,
    adapter: Adapter,
    out: Out,
    dtype: Annotated[
        str | None,
        typer.Option(help="Type of floating-point tensors: fp32, bf16 or fp16; default: as in the base."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a merged copy of the base model, shard by shard. If interrupted, the same command resumes."""
    from ailora.checkpoints import merge as merge_checkpoint
    from ailora.cli.tables import print_report

    report = merge_checkpoint(base, adapter, out, dtype=dtype, force=force)
    print_report(f"written to {out}", report.to_dict(), as_json=as_json)
